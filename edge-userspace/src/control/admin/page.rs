//! The files of the dashboard, which are part of the program: nothing comes from elsewhere.

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    routing::{MethodRouter, get},
};

/// Path, media type and content.
type File = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const FILES: &[File] = &[
    ("/", HTML, include_str!("page/index.html")),
    ("/page/style.css", CSS, include_str!("page/style.css")),
    ("/page/icon.svg", SVG, include_str!("page/icon.svg")),
    ("/page/main.js", SCRIPT, include_str!("page/main.js")),
    ("/page/feed.js", SCRIPT, include_str!("page/feed.js")),
    ("/page/table.js", SCRIPT, include_str!("page/table.js")),
    ("/page/sparkline.js", SCRIPT, include_str!("page/sparkline.js")),
    ("/page/units.js", SCRIPT, include_str!("page/units.js")),
    ("/page/verdict.js", SCRIPT, include_str!("page/verdict.js")),
    ("/page/sections.js", SCRIPT, include_str!("page/sections.js")),
    ("/page/changes.js", SCRIPT, include_str!("page/changes.js")),
    ("/page/routetest.js", SCRIPT, include_str!("page/routetest.js")),
];

/// Adds a path for each file.
pub(super) fn files<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    FILES.iter().fold(router, |router, file| router.route(file.0, served(file)))
}

fn served<S: Clone + Send + Sync + 'static>(&(_, media_type, content): &'static File) -> MethodRouter<S> {
    get(async move || ([(CONTENT_TYPE, media_type)], content))
}
