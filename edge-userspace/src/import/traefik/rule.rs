//! Rules of Traefik's TCP routers: `HostSNI(…)`, `HostSNIRegexp(…)`, `ClientIP(…)`, `ALPN(…)` with `&&`, `||`, `!` and
//! parentheses.

use crate::{
    import::{
        model::{Alternatives, When, both, net},
        pattern,
    },
    spec::HostPattern,
};

/// The deepest nesting of parentheses.
const DEEPEST: usize = 32;
/// The longest rule in bytes.
const LONGEST: usize = 16 << 10;

/// Reads a rule; the error says what edge has not.
pub(super) fn read(text: &str) -> Result<Alternatives, String> {
    if text.len() > LONGEST {
        return Err("the rule is too long".to_owned());
    }
    let mut parser = Parser { rest: text.trim() };
    let alternatives = parser.any(0)?;
    if parser.rest.is_empty() {
        Ok(alternatives)
    } else {
        Err(format!("not understood from `{}` on", parser.rest))
    }
}

struct Parser<'r> {
    rest: &'r str,
}

impl<'r> Parser<'r> {
    fn takes(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn any(&mut self, depth: usize) -> Result<Alternatives, String> {
        let mut alternatives = self.all(depth)?;
        while self.takes("||") {
            alternatives.extend(self.all(depth)?);
        }
        Ok(alternatives)
    }

    fn all(&mut self, depth: usize) -> Result<Alternatives, String> {
        let mut together = self.one(depth)?;
        while self.takes("&&") {
            let next = self.one(depth)?;
            together = both(&together, &next).ok_or("edge cannot combine these conditions")?;
        }
        Ok(together)
    }

    fn one(&mut self, depth: usize) -> Result<Alternatives, String> {
        if depth >= DEEPEST {
            return Err("parentheses are nested too deeply".to_owned());
        }
        if self.takes("!") {
            return Err("edge has no condition that excludes".to_owned());
        }
        if self.takes("(") {
            let inner = self.any(depth + 1)?;
            return if self.takes(")") { Ok(inner) } else { Err("a parenthesis is missing".to_owned()) };
        }
        let (name, after) =
            self.rest.split_once('(').ok_or_else(|| format!("not understood: `{}`", self.rest))?;
        self.rest = after.trim_start();
        let mut values = Vec::new();
        while !self.takes(")") {
            values.push(self.value()?);
            self.takes(",");
        }
        matcher(name.trim(), &values)
    }

    /// A text between backticks or quotes.
    fn value(&mut self) -> Result<&'r str, String> {
        let quote = self.rest.chars().next().filter(|next| matches!(next, '`' | '"' | '\''));
        let quote = quote.ok_or("a value without quotes")?;
        let (value, rest) = self.rest[1..].split_once(quote).ok_or("a quote is missing")?;
        self.rest = rest.trim_start();
        Ok(value)
    }
}

fn matcher(name: &str, values: &[&str]) -> Result<Alternatives, String> {
    let hosts = |read: &dyn Fn(&str) -> Option<Vec<HostPattern>>| {
        let hosts: Option<Vec<_>> = values.iter().map(|value| read(value)).collect();
        let hosts = hosts.ok_or("edge matches exact names and everything below a name")?.concat();
        Ok(vec![if hosts.contains(&HostPattern::Any) { When::default() } else { When::hosts(hosts) }])
    };
    match name.to_ascii_lowercase().as_str() {
        "hostsni" => hosts(&|value| value.parse().ok().map(|host| vec![host])),
        "hostsniregexp" => hosts(&|value| pattern::hosts(&placeholder(value), true)),
        "clientip" => {
            let from: Option<Vec<_>> = values.iter().map(|value| net(value)).collect();
            Ok(vec![When { from: from.ok_or("not a list of prefixes")?, ..When::default() }])
        }
        "alpn" => {
            Ok(vec![When { alpn: values.iter().map(|value| (*value).into()).collect(), ..When::default() }])
        }
        _ => Err(format!("edge has no condition like {name}")),
    }
}

/// `{name:[a-z]+}.example.com` of Traefik 2 as an expression.
fn placeholder(text: &str) -> String {
    let Some((before, rest)) = text.split_once('{') else { return text.to_owned() };
    match rest.rsplit_once('}') {
        Some((inside, after)) if before.is_empty() && !inside.contains('{') => {
            let expression = inside.split_once(':').map_or("[^.]+", |(_, expression)| expression);
            format!("^{expression}{}$", after.replace('.', "\\."))
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_alternatives() {
        let hosts = |text: &str| {
            let alternatives = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let patterns =
                |when: &When| when.patterns().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            alternatives.iter().map(patterns).collect::<Vec<_>>().join(" | ")
        };
        assert_eq!(hosts("HostSNI(`a.test`, `b.test`)"), "a.test b.test");
        assert_eq!(
            hosts("HostSNI(`a.test`) || (HostSNI(`b.test`) && ClientIP(`10.0.0.0/8`))"),
            "a.test | b.test"
        );
        assert_eq!(hosts("HostSNI(`*`)"), "*");
        assert_eq!(hosts(r"HostSNIRegexp(`^.+\.a\.test$`)"), "*.a.test");
        assert_eq!(hosts("HostSNIRegexp(`{sub:[a-z]+}.a.test`)"), "*.a.test");
        assert_eq!(hosts("HostSNIRegexp(`{sub:.*}.a.test`)"), "*.a.test");
        let alpn = read("HostSNI(`a.test`) && ALPN(`h2`)").unwrap();
        assert_eq!(&*alpn[0].alpn[0], "h2");
    }

    #[test]
    fn what_edge_has_not_is_an_error_and_nothing_panics() {
        for text in [
            "!HostSNI(`a`)",
            "Path(`/`)",
            "HostSNI(`a`",
            "HostSNI(a)",
            "",
            "(",
            "HostSNI(`a`) x",
            "é(",
            "HostSNI(é)",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(read(&"(".repeat(10_000)).is_err());
        let many = vec!["(HostSNI(`a.test`) || ALPN(`h2`))"; 40].join(" && ");
        assert!(read(&many).is_err());
    }
}
