//! A listener on a range of ports.

use lab::{Edged, Result, ensure, service};

use crate::{answer_to, case};

#[test]
fn a_client_reaches_the_port_at_home_that_it_came_to() -> Result<()> {
    case(|lab| {
        let _one = service::named(&lab.home, lab.home_at(25565), "one")?;
        let _two = service::named(&lab.home, lab.home_at(25575), "two")?;
        let _three = service::named(&lab.home, lab.home_at(25580), "three")?;
        let body = |ports: &str| {
            format!(
                "[[listener]]\nname = \"games\"\nbind = [\"[::]:{ports}\"]\nprotocol = \"tcp\"\nto = \"{}\"\n",
                lab.home_address()
            )
        };
        let edged = Edged::start(lab, &body("25565-25575"))?;
        for at in [lab.edge.at(25565), lab.edge.at_v6(25565)] {
            ensure!(answer_to(lab, at, b"hello")? == "one");
        }
        ensure!(answer_to(lab, lab.edge.at(25575), b"hello")? == "two");
        ensure!(lab.client.refuses(lab.edge.at(25576)) && lab.client.refuses(lab.edge.at(25564)));
        ensure!(edged.edgectl().text(&["status"])?.contains("[::]:25565-25575"));
        edged.rewrite(&body("25570-25580"))?;
        edged.edgectl().text(&["reload"])?;
        ensure!(lab.client.refuses(lab.edge.at(25565)));
        ensure!(answer_to(lab, lab.edge.at(25575), b"hello")? == "two");
        ensure!(answer_to(lab, lab.edge.at(25580), b"hello")? == "three");
        Ok(())
    })
}
