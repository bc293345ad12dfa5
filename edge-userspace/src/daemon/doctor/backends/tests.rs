use super::*;
use crate::{
    config::Settings,
    daemon::build::{Retained, build},
};

fn running(text: &str) -> Running {
    build(&Settings::parse("test", text).unwrap(), &[], &mut Retained::default()).running
}

#[test]
fn every_backend_is_asked_as_its_clients_ask() {
    let running = running(
        "[[listener]]\nname = \"https\"\nprotocol = \"tls\"\nbind = [\"0.0.0.0:443\"]\n\
         [[listener]]\nname = \"http\"\nprotocol = \"http\"\nbind = [\"0.0.0.0:80\"]\n\
         [[listener]]\nname = \"mail\"\nprotocol = \"tcp\"\nbind = [\"0.0.0.0:25\"]\nto = \"10.0.0.9\"\n\
         [[route]]\nhost = \"a.example\"\nto = [\"10.0.0.1\", \"10.0.0.2:8443\"]\nproxy_protocol = \"v2\"\n\
         [[route]]\nhost = \"b.example\"\nto = \"10.0.0.3\"\nlistener = [\"http\"]\n\
         [[route]]\nhost = \"*.c.example\"\nto = \"10.0.0.4\"\n",
    );
    let shown: Vec<_> = homes(&running)
        .iter()
        .map(|home| {
            let name = home.plan.server_name.as_ref().map(HostName::to_string).unwrap_or_default();
            (home.backend.to().to_string(), home.ask, home.plan.port, name)
        })
        .collect();
    let home = |to: &str, ask, port, name: &str| (to.to_owned(), ask, port, name.to_owned());
    assert_eq!(
        shown,
        [
            home("10.0.0.1", Ask::Tls, 443, "a.example"),
            home("10.0.0.2:8443", Ask::Tls, 443, "a.example"),
            home("10.0.0.3", Ask::Http, 80, "b.example"),
            home("10.0.0.4", Ask::Tls, 443, ""),
            home("10.0.0.9", Ask::Connect, 25, ""),
        ]
    );
}

fn judged(
    state: BackendState,
    steps: &[(&str, CheckStatus, Option<&str>)],
) -> Vec<(String, CheckStatus, bool)> {
    let running = running("[[route]]\nhost = \"a.example\"\nto = \"10.0.0.1\"\n");
    let homes = homes(&running);
    let steps = steps.iter().map(|&(name, status, remedy)| ProbeStep {
        name: name.into(),
        status,
        message: name.into(),
        duration_ms: None,
        remedy: remedy.map(str::to_owned),
    });
    let probe = Probe {
        to: homes[0].backend.to().clone(),
        address: None,
        status: CheckStatus::Ok,
        steps: steps.collect(),
    };
    judge("b", state, &status::backend(&homes[0].backend), &probe)
        .into_iter()
        .map(|check| (check.name.to_string(), check.status, check.remedy.is_some()))
        .collect()
}

#[test]
fn one_fault_is_one_line() {
    use CheckStatus::{Fail, Ok};
    let all_ok = [("connect", Ok, None), (HELLO, Ok, None), (LARGE_HELLO, Ok, None)];
    let up = BackendState::Up;
    let line = |name: &str, status, has_remedy| (name.to_owned(), status, has_remedy);
    assert_eq!(judged(up, &all_ok), [line("backend b", Ok, false), line("hello to b", Ok, false)]);
    assert_eq!(judged(up, &[("connect", Fail, Some("x"))]), [line("backend b", Fail, true)]);
    assert_eq!(
        judged(BackendState::Drained, &[("connect", Fail, Some("x"))]),
        [line("backend b", CheckStatus::Warn, true)]
    );
    let mismatch = [("connect", Ok, None), (HELLO, Fail, Some("x")), (HEADER, Fail, Some("y"))];
    assert_eq!(judged(up, &mismatch), [line("backend b", Ok, false), line("PROXY header for b", Fail, true)]);
    let silent = [("connect", Ok, None), (HELLO, Fail, Some("x"))];
    assert_eq!(judged(up, &silent), [line("backend b", Ok, false), line("hello to b", Fail, true)]);
    let lost = [("connect", Ok, None), (HELLO, Ok, None), (LARGE_HELLO, Fail, Some("x"))];
    assert_eq!(judged(up, &lost), [line("backend b", Ok, false), line("hello to b", Fail, true)]);
}
