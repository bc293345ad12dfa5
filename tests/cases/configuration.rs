//! A configuration that is wrong is refused whole, with its place, what was expected and how to mend it.

use lab::{Context, Edged, Result, edged::check, ensure, wait::SOON};

use crate::case;

/// A route that is right, to go with what is wrong.
const ROUTE: &str = "[[route]]\nhost = \"a.example\"\nto = \"100.64.0.2\"\n";

/// A wrong file, and the parts of its error: the place, and the remedy.
const WRONG: &[(&str, &[&str])] = &[
    ("x = \n", &[":1:5: ", "must be quoted"]),
    ("[[rout]]\nhost = \"a\"\n", &[":1:3: ", "unknown key `rout`", "did you mean `route`?"]),
    ("route = \"a\"\n", &[":1:9: ", "each written [[route]]"]),
    ("[[route]]\nto = \"100.64.0.2\"\n", &[":1:1: ", "no `host` in [[route]]", "add for example host ="]),
    ("[[route]]\nhost = \"a.example\"\n", &[":1:1: ", "no `to` in [[route]]", "add for example to ="]),
    ("[[route]]\nhost = \"a..example\"\nto = \"p\"\n", &[":2:8: ", "the name has an empty label"]),
    (
        "[[route]]\nhost = \"192.0.2.1\"\nto = \"p\"\n",
        &[":2:8: ", "an IP address is not a host name", "\"*\""],
    ),
    ("[[route]]\nhost = \"a.*.example\"\nto = \"p\"\n", &[":2:8: ", "first as in \"*.example.com\""]),
    ("[[route]]\nhost = \"a\"\nto = \"100.64.0.2:99999\"\n", &[":3:6: ", "is no address", "100.64.0.2"]),
    ("[[route]]\nhost = \"a\"\nto = []\n", &[":3:6: ", "at least one address, got an empty list"]),
    (
        "[[route]]\nhost = \"b\"\nto = \"cady\"\n[[pool]]\nname = \"caddy\"\n[[pool.backend]]\nto = \"::1\"\n",
        &[":3:6: ", "no pool is called `cady`", "did you mean `caddy`?"],
    ),
    ("[daemon]\ndatapath = \"sockmop\"\n", &[":2:12: ", "\"auto\", \"flow\"", "did you mean `sockmap`?"]),
    ("[daemon]\ndatapath = \"auto\"\ndatapath = \"copy\"\n", &[":3:1: ", "duplicate key"]),
    ("[daemon]\nadmin = \"9464\"\n", &[":2:9: ", "an address and a port", "write \"[::]:9464\""]),
    ("[daemon]\nstate_dri = \"/tmp\"\n", &[":2:1: ", "unknown key `state_dri`", "did you mean `state_dir`?"]),
    ("[limits]\nhello_bytes = 70000\n", &[":2:15: ", "from 1 to 65536, got 70000"]),
    ("[limits]\nhello_timeout = \"fast\"\n", &[":2:17: ", "a time with its unit", "got \"fast\""]),
    ("[limits]\nconnections = -1\n", &[":2:15: ", "a whole number from 0", "got -1"]),
    (
        "[[listener]]\nname = \"l\"\nbind = [\"[::]:99999\"]\nprotocol = \"tls\"\n",
        &[":3:9: ", "got \"[::]:99999\""],
    ),
    (
        "[[listener]]\nname = \"l\"\nbind = [\"[::]:1\"]\nprotocol = \"udp\"\n",
        &[":4:12: ", "\"tls\", \"http\"", "got \"udp\""],
    ),
    ("[[listener]]\nname = \"l\"\nbind = [\"[::]:1\"]\nprotocol = \"tcp\"\n", &[":1:1: ", "needs `to`"]),
    (
        "[[listener]]\nname = \"l\"\nbind = [\"[::]:1\"]\nprotocol = \"tls\"\n\
         [[listener]]\nname = \"m\"\nbind = [\"[::]:1\"]\nprotocol = \"http\"\n",
        &[":7:9: ", "[::]:1 is bound already, on line 3"],
    ),
    ("[[pool]]\nname = \"p\"\n", &[":1:1: ", "at least one backend"]),
    (
        "[[pool]]\nname = \"p\"\n[[pool.backend]]\nto = \"::1\"\nwieght = 2\n",
        &[":5:1: ", "did you mean `weight`?"],
    ),
    (
        "[[pool]]\nname = \"p\"\nhealth = { kind = \"icmp\" }\n[[pool.backend]]\nto = \"::1\"\n",
        &[":3:19: ", "\"auto\", \"off\", \"tcp\", \"tls\""],
    ),
    (
        "[[route]]\nhost = \"a\"\nto = \"::1\"\nproxy_tlvs = [\"alpn\"]\n",
        &[":4:14: ", "no header with TLVs", "proxy_protocol = \"v2\""],
    ),
    (
        "[[route]]\nhost = \"a\"\nto = \"::1\"\nproxy_protocol = \"v2\"\nproxy_tlvs = [\"aplh\"]\n",
        &[":5:15: ", "\"authority\", \"alpn\""],
    ),
    ("[resolver]\nservers = [\"dns.example\"]\n", &[":2:12: ", "the address of a name server"]),
];

#[test]
fn what_is_wrong_is_said_with_its_place() -> Result<()> {
    case(|lab| {
        for (text, said) in WRONG {
            let output =
                check(&lab.edge, &format!("{text}{}", if text.contains("route") { "" } else { ROUTE }))?;
            let message = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1), "{text:?} was taken: {message}");
            for part in *said {
                ensure!(message.contains(part), "{text:?}: no {part:?} in {message}");
            }
            ensure!(message.contains("check.toml:"), "the file is not named: {message}");
        }
        Ok(())
    })
}

#[test]
fn several_mistakes_are_told_at_once() -> Result<()> {
    case(|lab| {
        let text = "[daemon]\ndatapath = 1\n[limits]\nhello_bytes = 0\n[[route]]\nhots = \"a\"\n";
        let output = check(&lab.edge, text)?;
        let message = String::from_utf8_lossy(&output.stderr);
        for place in [":2:12: ", ":4:15: ", ":6:1: "] {
            ensure!(message.contains(place), "no {place:?} in {message}");
        }
        Ok(())
    })
}

#[test]
fn the_examples_are_valid() -> Result<()> {
    case(|lab| {
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let mut count = 0;
        for entry in std::fs::read_dir(examples).context("reading examples/")? {
            let path = entry?.path();
            let output = check(&lab.edge, &std::fs::read_to_string(&path)?)?;
            let message = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{}: {message}", path.display());
            count += 1;
        }
        ensure!(count > 0, "no examples");
        Ok(())
    })
}

#[test]
fn a_wrong_file_stops_the_start() -> Result<()> {
    case(|lab| {
        let mut process = Edged::plan(lab, "[[route]]\nhots = 1\n").spawn()?;
        let status = process.wait(SOON)?;
        let log = process.whole_log()?;
        ensure!(status.code() == Some(1) && log.contains("edge.toml:"), "{status}: {log}");
        Ok(())
    })
}
