//! What `top` knows, and what keys and looks do to it. Draws nothing, asks nobody.

use super::rows::{Column, HISTORY, Looks, ServiceRow, sort};
use clap::ValueEnum;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use splitter_api::{RolloutStatus, Service, Status};
use std::collections::VecDeque;

/// What happens.
pub enum Event {
    Key(KeyEvent),
    /// Columns and rows of the terminal.
    Size(u16, u16),
    /// The agent answered; seconds of a clock that does not go back, and Unix seconds.
    Status(Box<Status>, f64, f64),
    /// It did not.
    Lost(String, f64),
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Go,
    Quit,
}

/// What is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Page {
    #[default]
    List,
    Service(String),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Top {
    looks: Looks,
    /// As the agent gave it; the services' rows are made of it.
    pub status: Option<Status>,
    pub services: Vec<ServiceRow>,
    pub sort: Column,
    pub reversed: bool,
    pub filter: String,
    /// The filter is being written.
    pub typing: bool,
    pub help: bool,
    pub page: Page,
    /// Index into [`Top::visible`]; the name keeps it on its service while the order changes.
    pub selected: usize,
    name: Option<String>,
    /// First service that is shown.
    pub first: usize,
    /// First line of a service's page that is shown, and how many there are.
    pub scroll: usize,
    pub lines: usize,
    /// Since when the agent does not answer, and why.
    pub lost: Option<(f64, String)>,
    /// Seconds, of the same clock as the looks.
    pub now: f64,
    /// Unix seconds of the last answer.
    pub wall: f64,
    /// Columns and rows.
    pub size: (u16, u16),
    /// Rates of the opened service's versions at the last looks.
    pub history: VecDeque<Vec<(String, Option<f64>)>>,
}

/// Lines of every page that belong to no service: two of the node, the columns' titles, the keys.
const FRAME: usize = 4;

impl Top {
    pub fn new(sort: Column) -> Self {
        Self { sort, size: (80, 24), ..Self::default() }
    }

    pub fn update(&mut self, event: Event) -> Next {
        match event {
            Event::Size(columns, rows) => self.size = (columns, rows),
            Event::Lost(why, now) => {
                self.now = now;
                self.lost = Some((self.lost.take().map_or(now, |(since, _)| since), why));
            }
            Event::Status(status, now, wall) => {
                (self.now, self.wall, self.lost) = (now, wall, None);
                self.services = self.looks.note(&status, now);
                self.status = Some(*status);
                self.remember();
            }
            Event::Key(key) if key.kind == KeyEventKind::Release => {}
            Event::Key(key) if key.modifiers.contains(KeyModifiers::CONTROL) => {
                if matches!(key.code, KeyCode::Char('c')) {
                    return Next::Quit;
                }
            }
            Event::Key(key) => {
                if self.press(key.code) == Next::Quit {
                    return Next::Quit;
                }
            }
        }
        self.settle();
        Next::Go
    }

    fn press(&mut self, key: KeyCode) -> Next {
        if self.help {
            // Any key leaves the help, and only that.
            self.help = false;
        } else if self.typing {
            self.write(key);
        } else {
            match key {
                KeyCode::Char('q') => return Next::Quit,
                KeyCode::Char('?') => self.help = true,
                _ if self.page == Page::List => self.in_list(key),
                _ => self.in_service(key),
            }
        }
        Next::Go
    }

    fn write(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char(c) if !c.is_control() => self.filter.push(c),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.typing = false;
            }
            KeyCode::Up | KeyCode::Down | KeyCode::PageUp | KeyCode::PageDown => self.in_list(key),
            _ => {}
        }
    }

    fn in_list(&mut self, key: KeyCode) {
        let last = self.visible().len().saturating_sub(1);
        let page = self.page_of_services();
        match key {
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select((self.selected + 1).min(last)),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(page)),
            KeyCode::PageDown => self.select((self.selected + page).min(last)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(last),
            KeyCode::Enter | KeyCode::Right => self.open(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('r') => self.sort_by(self.sort, !self.reversed),
            KeyCode::Char('s') => self.sort_by_next(1),
            KeyCode::Char('S') => self.sort_by_next(Column::value_variants().len() - 1),
            KeyCode::Char(letter) => {
                if let Some(column) = super::view::column_of(letter) {
                    self.sort_by(column, self.sort == column && !self.reversed);
                }
            }
            _ => {}
        }
    }

    fn in_service(&mut self, key: KeyCode) {
        let page = self.body().saturating_sub(1).max(1);
        self.scroll = match key {
            KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll + 1,
            KeyCode::PageUp => self.scroll.saturating_sub(page),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll + page,
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => usize::MAX,
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace | KeyCode::Enter => {
                self.page = Page::List;
                0
            }
            _ => self.scroll,
        };
    }

    fn sort_by_next(&mut self, by: usize) {
        let all = Column::value_variants();
        let at = all.iter().position(|column| *column == self.sort).unwrap_or(0);
        self.sort_by(all[(at + by) % all.len()], false);
    }

    /// Who sorts wants to see what comes first.
    fn sort_by(&mut self, column: Column, reversed: bool) {
        (self.sort, self.reversed) = (column, reversed);
        (self.selected, self.first, self.name) = (0, 0, None);
    }

    fn select(&mut self, index: usize) {
        self.selected = index;
        self.name = self.visible().get(index).map(|service| service.name.clone());
    }

    fn open(&mut self) {
        if let Some(name) = self.visible().get(self.selected).map(|service| service.name.clone()) {
            self.page = Page::Service(name.clone());
            (self.scroll, self.name) = (0, Some(name));
            self.history.clear();
            self.remember();
        }
    }

    /// Notes the rates of the opened service's versions.
    fn remember(&mut self) {
        let Page::Service(name) = &self.page else { return };
        let Some(service) = self.services.iter().find(|service| service.name == *name) else { return };
        self.history.push_back(service.versions.iter().map(|version| (version.name.clone(), version.rate)).collect());
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    /// Services that fit the filter, in order.
    pub fn visible(&self) -> Vec<&ServiceRow> {
        let filter = self.filter.to_lowercase();
        self.services.iter().filter(|service| filter.is_empty() || service.name.to_lowercase().contains(&filter)).collect()
    }

    /// The opened service with its row and its rollout; `None` while the agent does not have it.
    pub fn opened(&self) -> Option<(&Service, &ServiceRow, Option<&RolloutStatus>)> {
        let Page::Service(name) = &self.page else { return None };
        let status = self.status.as_ref()?;
        let service = status.services.iter().find(|service| service.name == *name)?;
        let row = self.services.iter().find(|row| row.name == *name)?;
        Some((service, row, status.rollouts.iter().find(|rollout| rollout.service == *name)))
    }

    /// What is wrong with the agent or its policy, most important first.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some((since, why)) = &self.lost {
            warnings.push(format!("nothing new for {:.0} s, asking again: {why}", self.now - since));
        }
        let Some(status) = &self.status else { return warnings };
        if let Some(error) = &status.applied.error {
            warnings.push(format!("the last change was not applied, it is tried again: {error}"));
        }
        warnings.extend(status.desired.errors.first().map(|error| format!("the policy is rejected, the last good one stays: {error}")));
        if status.interfaces.is_empty() {
            warnings.push("attached to no interface: no traffic is split".into());
        }
        warnings
    }

    /// Lines for services, or for the page of one.
    pub fn body(&self) -> usize {
        usize::from(self.size.1).saturating_sub(FRAME + self.warnings().len()).max(1)
    }

    /// Services that fit below the first one.
    fn page_of_services(&self) -> usize {
        let mut left = self.body();
        let fitting = self.visible().into_iter().skip(self.first).take_while(|service| {
            let height = service.height();
            let fits = height <= left;
            left = left.saturating_sub(height);
            fits
        });
        fitting.count().max(1)
    }

    /// Puts order, selection and scrolling right after a change.
    fn settle(&mut self) {
        sort(&mut self.services, self.sort, self.reversed);
        let body = self.body();
        let visible = self.visible();
        let named = self.name.as_ref().and_then(|name| visible.iter().position(|service| service.name == *name));
        let selected = named.unwrap_or(self.selected).min(visible.len().saturating_sub(1));
        let mut first = self.first.min(selected);
        let mut height: usize = visible.iter().take(selected + 1).skip(first).map(|service| service.height()).sum();
        while height > body && first < selected {
            height -= visible[first].height();
            first += 1;
        }
        (self.selected, self.first) = (selected, first);
        self.lines = super::detail::lines(self).len();
        self.scroll = self.scroll.min(self.lines.saturating_sub(body));
    }
}
