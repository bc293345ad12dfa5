//! Findings about the kernel, in words for the operator.

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Good,
    /// Could not be looked at, or does not matter here.
    Unknown,
    /// Something works less well, or is missing that another part makes up for.
    Limited,
    /// Not there.
    Missing,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The subject, in a few words.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// The finding.
    pub message: String,
    /// How to mend it, where anything is to be mended.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding without a remedy.
    pub fn new(name: &'static str, state: State, message: impl Into<String>) -> Self {
        Self { name, state, message: message.into(), remedy: None }
    }

    /// The same, with how to mend it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}
