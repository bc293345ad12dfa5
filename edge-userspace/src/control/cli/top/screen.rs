//! The screen of `edgectl top` as a state: samples and keys in, a picture out. No I/O.

use std::{collections::VecDeque, time::Duration};

use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Sparkline},
};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{
    super::{Output, lists, status, style::printable, table::NONE, units},
    Rate, Sample, rates,
};
use crate::{control::api::Connection, spec::HostName};

/// Samples in the sparklines: more than any terminal is wide.
const HISTORY: usize = 512;
/// Problems on the screen; `edgectl status` has all.
const PROBLEMS: usize = 3;
/// Lines for the chosen connection: the longest names need two, its numbers one.
const DETAIL: u16 = 3;
/// From this width on, backend and tier have columns of their own. Below, the chosen connection's are at the bottom.
const WIDE: u16 = 110;

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Rate,
    Bytes,
    Age,
    Host,
    Client,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Rate, Self::Bytes, Self::Age, Self::Host, Self::Client];

    const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Host => "host",
            Self::Client => "client",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }
}

/// The request that a key makes to the loop around the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Draw again.
    Draw,
    /// Take a sample now.
    Refresh,
    /// Take samples less often, or more often.
    Interval(Duration),
    /// End.
    Quit,
}

/// The state.
pub(super) struct Screen {
    output: Output,
    interval: Duration,
    before: Option<Sample>,
    now: Option<Sample>,
    /// Why there is no newer sample.
    trouble: Option<String>,
    /// Up and down in bytes a second, the newest last.
    history: VecDeque<Rate>,
    sort: Sort,
    is_reversed: bool,
    filter: String,
    is_typing: bool,
    is_paused: bool,
    /// The chosen row, and the first one shown.
    chosen: usize,
    first: usize,
    /// Rows of the last picture.
    page: usize,
}

impl Screen {
    pub(super) fn new(output: Output, interval: Duration) -> Self {
        Self {
            output,
            interval,
            before: None,
            now: None,
            trouble: None,
            history: VecDeque::new(),
            sort: Sort::Rate,
            is_reversed: false,
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            chosen: 0,
            first: 0,
            page: 1,
        }
    }

    /// A new sample. After a restart of the daemon nothing before it counts.
    pub(super) fn take(&mut self, sample: Sample) {
        self.trouble = None;
        if self.is_paused {
            return;
        }
        let is_same =
            |old: &Sample| old.status.pid == sample.status.pid && old.status.started == sample.status.started;
        self.before = self.now.take().filter(is_same);
        if let Some(before) = &self.before {
            let seconds = (sample.time - before.time).as_secs_f64();
            let up = super::rate(before.status.bytes_up, sample.status.bytes_up, seconds);
            let down = super::rate(before.status.bytes_down, sample.status.bytes_down, seconds);
            self.history.push_back((up, down));
            let more = self.history.len().saturating_sub(HISTORY);
            self.history.drain(..more);
        }
        self.now = Some(sample);
    }

    /// There is no sample; the last one stays.
    pub(super) fn lose(&mut self, why: String) {
        self.trouble = Some(why);
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Wish::Quit;
        }
        if self.is_typing {
            return self.type_filter(key.code);
        }
        let page = self.page.max(1);
        match key.code {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Wish::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/' | 'f') => self.is_typing = true,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char(' ') => return Wish::Refresh,
            KeyCode::Char('+') => return self.every(self.interval / 2),
            KeyCode::Char('-') => return self.every(self.interval * 2),
            KeyCode::Up | KeyCode::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.chosen = self.chosen.saturating_add(1),
            KeyCode::PageUp => self.chosen = self.chosen.saturating_sub(page),
            KeyCode::PageDown => self.chosen = self.chosen.saturating_add(page),
            KeyCode::Home | KeyCode::Char('g') => self.chosen = 0,
            KeyCode::End | KeyCode::Char('G') => self.chosen = usize::MAX,
            _ => {}
        }
        Wish::Draw
    }

    fn type_filter(&mut self, key: KeyCode) -> Wish {
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.is_typing = false;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(character) if !character.is_control() => self.filter.push(character),
            _ => {}
        }
        self.chosen = 0;
        Wish::Draw
    }

    fn every(&mut self, interval: Duration) -> Wish {
        self.interval = interval.clamp(Duration::from_millis(100), Duration::from_mins(1));
        Wish::Interval(self.interval)
    }

    /// The rows that the filter leaves, sorted.
    fn rows(&self) -> Vec<(&Connection, Rate)> {
        let Some(now) = &self.now else { return Vec::new() };
        let mut rows = rates(self.before.as_ref(), now);
        let wanted = self.filter.to_lowercase();
        if !wanted.is_empty() {
            rows.retain(|(connection, _)| {
                texts(connection).any(|text| text.to_lowercase().contains(&wanted))
            });
        }
        rows.sort_by(|(a, a_rate), (b, b_rate)| {
            let order = match self.sort {
                Sort::Rate => (b_rate.0 + b_rate.1).total_cmp(&(a_rate.0 + a_rate.1)),
                Sort::Bytes => (b.bytes_up + b.bytes_down).cmp(&(a.bytes_up + a.bytes_down)),
                Sort::Age => b.age_seconds.total_cmp(&a.age_seconds),
                Sort::Host => {
                    a.host.as_ref().map(HostName::as_str).cmp(&b.host.as_ref().map(HostName::as_str))
                }
                Sort::Client => a.client.cmp(&b.client),
            };
            let order = if self.is_reversed { order.reverse() } else { order };
            order.then(b.id.cmp(&a.id))
        });
        rows
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let (area, width) = (frame.area(), usize::from(frame.area().width));
        let problems = self.problems(width);
        let [head, bad, up, down, bar, body, chosen, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(u16::try_from(problems.len()).unwrap_or(1)),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(2),
            Constraint::Length(DETAIL),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(Paragraph::new(self.head(width)), head);
        frame.render_widget(Paragraph::new(problems), bad);
        self.draw_rate(frame, up, "up", |rate| rate.0);
        self.draw_rate(frame, down, "down", |rate| rate.1);

        let height = usize::from(body.height).saturating_sub(1);
        let count = self.rows().len();
        self.page = height;
        self.chosen = self.chosen.min(count.saturating_sub(1));
        self.first = self.first.clamp(self.chosen.saturating_sub(height.saturating_sub(1)), self.chosen);
        let rows = self.rows();
        frame.render_widget(Paragraph::new(self.bar(rows.len(), width)), bar);
        let columns = Columns::of(area.width);
        let mut lines = vec![Line::styled(columns.titles(self.sort), self.style(None, Modifier::BOLD))];
        for (nth, (connection, rate)) in rows.iter().enumerate().skip(self.first).take(height) {
            let style =
                if nth == self.chosen { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            lines.push(Line::styled(columns.row(connection, *rate), style));
        }
        frame.render_widget(Paragraph::new(lines), body);
        let shown = rows.get(self.chosen).map(|(connection, _)| detail_lines(connection)).unwrap_or_default();
        frame.render_widget(Paragraph::new(shown).wrap(ratatui::widgets::Wrap { trim: true }), chosen);
        let help = if self.is_typing {
            "type a part of a client, host, backend or tier; Enter keeps it, Esc clears it"
        } else {
            "q quit  s sort  r reverse  / filter  p pause  space now  + - speed  arrows move"
        };
        frame.render_widget(Paragraph::new(Line::styled(help, self.style(None, Modifier::DIM))), keys);
    }

    fn style(&self, colour: Option<Color>, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        match colour {
            Some(colour) if self.output.colours => style.fg(colour),
            _ => style,
        }
    }

    fn head(&self, width: usize) -> Line<'static> {
        let Some(Sample { status, .. }) = &self.now else {
            return Line::from(cut("edged: waiting for the first answer", width));
        };
        let backends = &status.backends;
        let text = format!(
            "edged {} up {}  {}  backends {} up, {} down  {}, {} in all",
            status.version,
            units::seconds(status.uptime_seconds),
            units::count(status.routes.file + status.routes.runtime, "route"),
            backends.up + backends.unchecked,
            backends.down,
            units::count(status.connections.now, "connection"),
            status.connections.total,
        );
        Line::styled(cut(&text, width), self.style(None, Modifier::BOLD))
    }

    /// One line at least: what is wrong, or that nothing is.
    fn problems(&self, width: usize) -> Vec<Line<'static>> {
        let red = self.style(Some(Color::Red), Modifier::BOLD);
        let mut lines = Vec::new();
        if let Some(trouble) = &self.trouble {
            lines.push(Line::styled(cut(&printable(trouble), width), red));
        }
        if let Some(Sample { status, backends, .. }) = &self.now {
            let plain = Output { colours: false, width: None, ..self.output };
            let found = status::problems(status, backends, plain);
            let more = found.len().saturating_sub(PROBLEMS);
            lines.extend(found.iter().take(PROBLEMS).map(|line| Line::styled(cut(line, width), red)));
            if more > 0 {
                lines.push(Line::styled(format!("{more} more: see `edgectl status`"), red));
            }
            if status.draining {
                let yellow = self.style(Some(Color::Yellow), Modifier::BOLD);
                lines.push(Line::styled("draining: edged ends with its last connection", yellow));
            }
            if lines.is_empty() {
                lines.push(Line::styled(
                    "nothing is wrong",
                    self.style(Some(Color::Green), Modifier::empty()),
                ));
            }
        }
        if lines.is_empty() {
            lines.push(Line::default());
        }
        lines
    }

    fn draw_rate(&self, frame: &mut Frame<'_>, area: Rect, name: &str, of: fn(&Rate) -> f64) {
        let [label, line] = Layout::horizontal([Constraint::Length(20), Constraint::Min(1)]).areas(area);
        let newest = self.history.back().map_or(0.0, of);
        frame.render_widget(Paragraph::new(format!("{name:<5}{:>14}", units::bit_rate(newest))), label);
        let shown = self.history.len().saturating_sub(usize::from(line.width));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a height on the screen")]
        let bars: Vec<u64> = self.history.iter().skip(shown).map(|rate| of(rate) as u64).collect();
        let style = self.style(Some(Color::Cyan), Modifier::empty());
        frame.render_widget(Sparkline::default().data(&bars).style(style), line);
    }

    fn bar(&self, count: usize, width: usize) -> Line<'static> {
        let direction = if self.is_reversed { ", reversed" } else { "" };
        let paused = if self.is_paused { "  paused" } else { "" };
        let filter = match (self.is_typing, &*self.filter) {
            (true, filter) => format!("  filter: {filter}_"),
            (false, "") => String::new(),
            (false, filter) => format!("  filter: {filter}"),
        };
        let interval = units::age(self.interval);
        let text =
            format!("{} shown by {}{direction}, every {interval}{paused}{filter}", count, self.sort.name());
        Line::from(vec![Span::styled(cut(&text, width), self.style(None, Modifier::DIM))])
    }
}

/// The texts that the filter looks into.
fn texts(connection: &Connection) -> impl Iterator<Item = String> {
    [
        Some(connection.client.to_string()),
        connection.host.as_ref().map(ToString::to_string),
        connection.backend.as_ref().map(ToString::to_string),
        Some(connection.listener.to_string()),
        Some(lists::datapath(connection)),
    ]
    .into_iter()
    .flatten()
}

/// Everything about the chosen connection that the columns may have cut.
fn detail_lines(connection: &Connection) -> Vec<Line<'static>> {
    let host = connection.host.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string);
    let backend = connection.backend.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string);
    vec![
        Line::from(printable(&format!("{} {} > {host}", connection.id, connection.client)).into_owned()),
        Line::from(
            printable(&format!(
                "{} > {backend} {}, idle {}, {} up, {} down",
                connection.listener,
                lists::datapath(connection),
                units::seconds(connection.idle_seconds),
                units::bytes(connection.bytes_up),
                units::bytes(connection.bytes_down),
            ))
            .into_owned(),
        ),
    ]
}

/// The widths of the columns.
struct Columns {
    client: usize,
    host: usize,
    backend: usize,
}

impl Columns {
    const ID: usize = 7;
    const TIER: usize = 8;
    const RATE: usize = 9;
    const AGE: usize = 7;

    fn of(width: u16) -> Self {
        let fixed = Self::ID + 2 * Self::RATE + Self::AGE + 5;
        let left = usize::from(width).saturating_sub(fixed);
        if width < WIDE {
            // The name matters more than the address.
            let client = (left * 2 / 5).min(21);
            return Self { client, host: left.saturating_sub(client), backend: 0 };
        }
        let left = left.saturating_sub(Self::TIER + 2);
        let client = (left / 3).min(47);
        let backend = (left / 4).min(47);
        Self { client, host: left.saturating_sub(client + backend), backend }
    }

    fn titles(&self, sort: Sort) -> String {
        let mark = |title: &str, sorts: &[Sort]| {
            if sorts.contains(&sort) { format!("{title}*") } else { title.to_owned() }
        };
        self.line([
            "ID",
            &mark("CLIENT", &[Sort::Client]),
            &mark("HOST", &[Sort::Host]),
            "BACKEND",
            "TIER",
            &mark("UP b/s", &[Sort::Rate, Sort::Bytes]),
            &mark("DOWN b/s", &[Sort::Rate, Sort::Bytes]),
            &mark("AGE", &[Sort::Age]),
        ])
    }

    fn row(&self, connection: &Connection, (up, down): Rate) -> String {
        let host = connection.host.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string);
        let backend = connection.backend.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string);
        self.line([
            &connection.id.to_string(),
            &connection.client.to_string(),
            &host,
            &backend,
            connection.datapath.map_or(NONE, crate::spec::Tier::name),
            &short(up),
            &short(down),
            &units::seconds(connection.age_seconds),
        ])
    }

    fn line(&self, [id, client, host, backend, tier, up, down, age]: [&str; 8]) -> String {
        let mut line =
            format!("{} {} {}", right(id, Self::ID), left(client, self.client), left(host, self.host));
        if self.backend > 0 {
            line.extend([" ", &left(backend, self.backend), " ", &left(tier, Self::TIER)]);
        }
        line.extend([
            " ",
            &right(up, Self::RATE),
            " ",
            &right(down, Self::RATE),
            " ",
            &right(age, Self::AGE),
        ]);
        line
    }
}

/// A rate without its unit, which the title has: `940.2 M`.
fn short(rate: f64) -> String {
    units::bit_rate(rate).replace("bit/s", "").trim_end().to_owned()
}

/// The text in so many columns, with a mark where it is cut.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let (mut out, mut used) = (String::new(), 1);
    for character in text.chars() {
        used += character.width().unwrap_or(0);
        if used > width {
            break;
        }
        out.push(character);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

fn left(text: &str, width: usize) -> String {
    let text = cut(&printable(text), width);
    let gap = width.saturating_sub(text.width());
    text + &" ".repeat(gap)
}

fn right(text: &str, width: usize) -> String {
    let text = cut(text, width);
    " ".repeat(width.saturating_sub(text.width())) + &text
}

#[cfg(test)]
mod tests;
