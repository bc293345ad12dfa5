//! `edgectl completions` and the answers that its scripts ask for.

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
};

use clap::{CommandFactory as _, ValueEnum};
use clap_complete::{CompleteEnv, Shell, env::Shells};

use super::{arguments::Arguments, style};

/// Set by the scripts when they ask for completions: the shell's name.
const VARIABLE: &str = "EDGECTL_COMPLETE";
/// The name under which the scripts find edgectl.
const EDGECTL: &str = "edgectl";

/// Bash breaks words at colons, and backends are full of them: hands the whole word to clap's function, and bash only
/// the part behind the last colon.
const BASH_COLONS: &str = r#"
_edgectl() {
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]}
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        local -a COMP_WORDS
        read -ra COMP_WORDS <<<"$line"
        local COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _clap_complete_edgectl "$1" "$word" "${COMP_WORDS[COMP_CWORD - 1]}"
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
    else
        _clap_complete_edgectl "$@"
    fi
}
complete -o nospace -o bashdefault -o nosort -F _edgectl edgectl
"#;

/// The shells that a package has completions for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ShellArg {
    Bash,
    Zsh,
    Fish,
}

/// Whose arguments a script completes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Program {
    Edgectl,
    Edged,
}

/// Answers a script's question for completions, if this process was started for one. To be called before anything else
/// writes to standard output.
pub(super) fn answer(arguments: &[OsString]) -> Result<bool, clap::Error> {
    let directory = env::current_dir().ok();
    CompleteEnv::with_factory(Arguments::command).var(VARIABLE).try_complete(arguments, directory.as_deref())
}

/// Prints the script that completes a program's arguments. The script for edgectl runs edgectl at each completion,
/// which queries the daemon. edged has only flags, and its script contains them.
pub(super) fn completions(shell: ShellArg, program: Program, mut edged: clap::Command) -> io::Result<()> {
    let mut script = Vec::new();
    match program {
        Program::Edgectl => {
            let name = shell.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            let shells = Shells::builtins();
            let completer = shells.completer(&name).ok_or(io::ErrorKind::Unsupported)?;
            completer.write_registration(VARIABLE, EDGECTL, EDGECTL, EDGECTL, &mut script)?;
            if matches!(shell, ShellArg::Bash) {
                script.write_all(BASH_COLONS.as_bytes())?;
            }
        }
        Program::Edged => {
            let shell = match shell {
                ShellArg::Bash => Shell::Bash,
                ShellArg::Zsh => Shell::Zsh,
                ShellArg::Fish => Shell::Fish,
            };
            clap_complete::generate(shell, &mut edged, "edged", &mut script);
        }
    }
    style::write(&script)
}
