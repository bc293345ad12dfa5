//! Routes for several hosts: a list, and `.example.com` for a name and everything below it.

use lab::{Edged, Result, ensure, service};

use crate::{case, greeting};

#[test]
fn each_host_of_a_list_leads_to_the_one_pool() -> Result<()> {
    case(|lab| {
        let _tls = service::named(&lab.home, lab.home_at(443), "tls")?;
        let _other = service::named(&lab.home, lab.home_at(8443), "other")?;
        let home = lab.home_address();
        let edged = Edged::start(
            lab,
            &format!(
                "[[route]]\nhost = [\".a.example\", \"b.example\"]\nto = [\"{home}\", \"{home}:443\"]\n\
                 [[route]]\nhost = [\"x.a.example\", \".c.example\"]\nto = \"{home}:8443\"\n"
            ),
        )?;
        for (name, answer) in [
            ("a.example", "tls"),
            ("y.a.example", "tls"),
            ("z.y.a.example", "tls"),
            ("b.example", "tls"),
            ("x.a.example", "other"),
            ("c.example", "other"),
            ("x.c.example", "other"),
        ] {
            ensure!(greeting(lab, name)? == answer, "{name}");
        }
        ensure!(!greeting(lab, "x.b.example")?.contains("tls"), "a name alone is not what is below it");
        edged.access_log.wait_for("the host of the list that matched", |record| {
            record["sni"] == "z.y.a.example" && record["route"] == "*.a.example"
        })?;
        let edgectl = edged.edgectl();
        let backends = edgectl.json(&["backends", "list"])?;
        ensure!(backends.as_array().map(Vec::len) == Some(3), "the hosts share one pool: {backends}");
        let routes = edgectl.json(&["routes", "list"])?;
        let hosts: Vec<_> = routes.as_array().into_iter().flatten().map(|route| &route["host"]).collect();
        let expected = ["a.example", "*.a.example", "b.example", "x.a.example", "c.example", "*.c.example"];
        ensure!(hosts == expected, "{routes}");
        Ok(())
    })
}

#[test]
fn a_dot_in_front_adds_and_removes_two_routes() -> Result<()> {
    case(|lab| {
        let _tls = service::named(&lab.home, lab.home_at(443), "tls")?;
        let home = lab.home_address().to_string();
        let edged = Edged::start(lab, "[[route]]\nhost = \"*.file.example\"\nto = \"192.0.2.99\"\n")?;
        let edgectl = edged.edgectl();
        let added = edgectl.json(&["routes", "add", ".a.example", &home])?;
        ensure!(added[0]["host"] == "a.example" && added[1]["host"] == "*.a.example", "{added}");
        let added = edgectl.json(&["routes", "add", "b.example", &home])?;
        ensure!(added["host"] == "b.example", "one host is one route: {added}");
        for name in ["a.example", "x.a.example"] {
            ensure!(greeting(lab, name)? == "tls", "{name}");
        }
        // All or none: one of the two is in the file.
        edgectl.refused(1, &["routes", "add", ".file.example", &home])?;
        edgectl.refused(1, &["routes", "remove", ".b.example"])?;
        let routes = edgectl.json(&["routes", "list"])?;
        ensure!(routes.as_array().map(Vec::len) == Some(4), "{routes}");

        let removed = edgectl.text(&["routes", "remove", ".a.example"])?;
        ensure!(
            removed.contains("removed a.example") && removed.contains("removed *.a.example"),
            "{removed}"
        );
        let routes = edgectl.json(&["routes", "list"])?;
        ensure!(routes.as_array().map(Vec::len) == Some(2), "{routes}");
        Ok(())
    })
}
