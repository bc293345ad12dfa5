//! `edgectl routes export`: routes that were added at run time, as TOML for the configuration file.

use serde::Serialize;

use crate::{
    control::api::{Route, RouteSource},
    spec::{Access, Conditions, RouteSpec},
};

#[derive(Serialize)]
struct File {
    route: Vec<RouteSpec>,
}

/// The routes that were added, each with the keys of `[[route]]`.
pub(super) fn toml(routes: &[Route]) -> Result<String, toml::ser::Error> {
    let added: Vec<_> =
        routes.iter().filter(|route| route.source == RouteSource::Runtime).map(spec).collect();
    if added.is_empty() {
        return Ok("# No route was added at run time.\n".to_owned());
    }
    let text = toml::to_string(&File { route: added })?;
    Ok(format!(
        "# Routes that were added at run time. In the file, they are dropped there at the next `edgectl reload`.\n\n{text}"
    ))
}

fn spec(route: &Route) -> RouteSpec {
    let conditions = Conditions {
        host: route.host.clone(),
        listeners: route.listener.clone(),
        protocols: route.protocol.clone(),
        alpn: route.alpn.clone(),
        from: route.from.clone(),
    };
    RouteSpec {
        access: Access { allow: route.allow.clone(), deny: route.deny.clone() },
        redirect: route.redirect,
        connections: route.connections_limit,
        proxy_protocol: route.proxy_protocol,
        proxy_tlvs: route.proxy_tlvs,
        datapath: route.datapath,
        ..RouteSpec::new(conditions, route.to.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{config::Settings, control::api::AddRoute};

    #[test]
    fn the_file_reads_the_same_routes() {
        let add = |fields| serde_json::from_value::<AddRoute>(fields).unwrap().specs();
        let specs: Vec<_> = [
            json!({"host": ".example.com", "to": ["100.64.0.2", "[fd7a::2]:443"], "connections": 5}),
            json!({
                "host": "*", "to": "unix:/run/caddy.sock", "listener": "https", "alpn": ["h2", "acme-tls/1"],
                "from": "192.0.2.0/24", "deny": "192.0.2.7", "allow": "192.0.2.0/25", "datapath": "splice",
                "proxy_protocol": "v2", "proxy_tlvs": ["authority", "unique_id"]
            }),
            json!({"host": "r.example", "to": "refuse"}),
            json!({"host": "h.example", "to": "100.64.0.2", "redirect": "https"}),
        ]
        .into_iter()
        .flat_map(add)
        .collect();
        let mut routes: Vec<_> = specs.iter().map(|spec| Route::new(spec, RouteSource::Runtime)).collect();
        let of_file = add(json!({"host": "file.example", "to": "100.64.0.2"}));
        routes.extend(of_file.iter().map(|spec| Route::new(spec, RouteSource::File)));
        let text = toml(&routes).unwrap();
        let read = Settings::parse("export.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(read.routes, specs, "{text}");
        assert!(Settings::parse("export.toml", &toml(&[]).unwrap()).is_ok());
    }
}
