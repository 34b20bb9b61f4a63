//! Events that a subscriber hears, for the tests to look at.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use super::until;

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) level: Level,
    pub(crate) target: String,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) fields: BTreeMap<&'static str, String>,
}

impl News {
    pub(crate) fn text(&self) -> &str {
        self.get("message")
    }

    /// A field, which must be there.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.fields.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap()
    }
}

/// What has been heard so far.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<News>>>);

impl Heard {
    pub(crate) fn all(&self) -> Vec<News> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has this target.
    pub(crate) fn of(&self, target: &str) -> Vec<News> {
        self.all().into_iter().filter(|news| news.target == target).collect()
    }

    /// The texts of what does not come from the pool itself.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.all().iter().filter(|news| news.target != "polyloop").map(|news| news.text().to_owned()).collect()
    }

    /// Waits for news of the pool with this text.
    pub(crate) async fn until(&self, text: &str) -> News {
        let found = || self.of("polyloop").into_iter().find(|news| news.text().starts_with(text));
        until(|| found().is_some()).await;
        found().unwrap()
    }
}

/// Hears all that is told by pools that are made while the guard lives, from this level on.
pub(crate) fn hear(level: LevelFilter) -> (Heard, DefaultGuard) {
    hear_and(level, |_| ())
}

/// The same, and does something at each event.
pub(crate) fn hear_and(level: LevelFilter, act: impl Fn(&News) + Send + Sync + 'static) -> (Heard, DefaultGuard) {
    let heard = Heard::default();
    let layer = Ears { heard: heard.clone(), act }.with_filter(level);
    (heard, tracing::subscriber::set_default(tracing_subscriber::registry().with(layer)))
}

struct Ears<F> {
    heard: Heard,
    act: F,
}

impl<S: Subscriber, F: Fn(&News) + Send + Sync + 'static> Layer<S> for Ears<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut news = News {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            file: metadata.file().map(str::to_owned),
            line: metadata.line(),
            fields: BTreeMap::new(),
        };
        event.record(&mut Fields(&mut news.fields));
        self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).push(news.clone());
        (self.act)(&news);
    }
}

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}
