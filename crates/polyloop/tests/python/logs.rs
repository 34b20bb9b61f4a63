//! What Python workers log, as a subscriber of the program hears it.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use polyloop::Error;
use serde_bytes::Bytes;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::rig::heard::{hear, hear_and};
use crate::rig::marks::Marks;
use crate::rig::python::run;
use crate::rig::{ROLE, myself, pids, until};
use crate::{MODULES, builder, pool};

#[test]
fn records_are_events_before_the_outcome_of_their_task() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::TRACE);
        let pid: u64 = pool(1).await.call("logs:logs_of_all_kinds").await.unwrap();
        let told: Vec<_> = heard.all().into_iter().filter(|news| news.target != "asyncio").collect();
        let heads: Vec<_> = told.iter().map(|news| (news.level, news.target.as_str(), news.text())).collect();
        let expected = [
            (Level::WARN, "app.worker", "1 of {'a': 2}"),
            (Level::DEBUG, "app.worker", "a detail"),
            (Level::TRACE, "app.worker", "less than a detail"),
            (Level::INFO, "app.worker", "between"),
            (Level::ERROR, "app.other", "a lone surrogate: \\ud800, no arguments: %d"),
            (Level::ERROR, "app.worker", "it failed"),
            (Level::ERROR, "root", "of the root"),
        ];
        assert_eq!(heads, expected);
        for news in &told {
            assert_eq!(news.number("pid"), pid);
            assert_eq!(news.file, Some(Path::new(MODULES).join("logs.py").display().to_string()));
        }
        let text = std::fs::read_to_string(Path::new(MODULES).join("logs.py")).unwrap();
        let line = text.lines().position(|line| line.contains("log.exception(\"it failed\"")).unwrap() + 1;
        assert_eq!(told[5].line, Some(line as u32));
        assert_eq!(told[5].get("extra"), "{'user': 'me', 'thing': <a thing>}");
        assert!(told[5].get("exception").ends_with("LookupError: what went wrong"), "{told:?}");
        assert!(told[5].get("exception").starts_with("Traceback (most recent call last):\n"), "{told:?}");
        assert!(told[5].get("stack").contains("in logs_of_all_kinds"), "{told:?}");
        let names: Vec<_> = told.iter().map(|news| news.fields.get("level_name").map(String::as_str)).collect();
        assert_eq!(names, [None, None, Some("Level 5"), Some("Level 25"), None, None, Some("CRITICAL")]);
        assert_eq!(told[0].fields.keys().collect::<Vec<_>>(), [&"message", &"pid"]);
    });
}

#[test]
fn warnings_are_events_too() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        pool(1).await.call::<()>("logs:warns").await.unwrap();
        let told = heard.all();
        assert_eq!((told.len(), told[0].level, told[0].target.as_str()), (1, Level::WARN, "py.warnings"));
        assert!(told[0].text().contains("RuntimeWarning: be careful"), "{told:?}");
        assert_eq!(told[0].text().trim_end(), told[0].text());
    });
}

#[test]
fn those_of_an_initializer_and_of_threads_are_heard_and_those_of_forked_children_are_not() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let py = builder(1).initializer("logs:log_at_start").build().await.unwrap();
        py.call::<()>("logs:logs_elsewhere").await.unwrap();
        assert_eq!(py.call::<i32>("logs:logs_in_a_fork").await.unwrap(), 0);
        py.call::<()>("logs:counts").arg(1).await.unwrap();
        assert_eq!(heard.texts(), ["it starts", "on a thread of its own", "0"]);
    });
}

/// Where a subscriber writes to.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_ordinary_subscriber_shows_them_and_filters_them_by_the_loggers_name() {
    run(|| async {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("warn,app.worker=debug"))
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_line_number(true)
            .with_file(true)
            .without_time();
        let _guard = tracing::subscriber::set_default(subscriber.finish());
        let py = pool(1).await;
        py.call::<()>("logs:logs_details").await.unwrap();
        let pid: u32 = py.call("logs:logs_of_all_kinds").await.unwrap();
        let shown = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let line = format!("DEBUG app.worker: {}:", Path::new(MODULES).join("logs.py").display());
        assert!(shown.starts_with(&line) && shown.contains(&format!(": a detail pid={pid}\n")), "{shown}");
        assert!(!shown.contains("not wanted") && !shown.contains("less than a detail"), "{shown}");
        assert!(
            shown.contains("ERROR root: ") && shown.contains(&format!("of the root pid={pid} level_name=")),
            "{shown}"
        );
        assert!(shown.contains("\nLookupError: what went wrong\n"), "as people read it: {shown}");
    });
}

#[test]
fn none_are_heard_twice_or_where_nobody_wants_them() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        for (builder, handlers) in [
            (builder(1).initializer("logs:configure"), 1),
            (builder(1).forward_logs(false), 0),
            (builder(1).initializer("logs:want_all"), 1),
        ] {
            let py = builder.build().await.unwrap();
            py.call::<()>("logs:counts").arg(3).await.unwrap();
            assert_eq!(py.call::<usize>("logs:handlers").await.unwrap(), handlers);
            assert!(heard.texts().is_empty(), "{:?}", heard.all());
        }
        let py = pool(1).await;
        py.call::<()>("logs:counts").arg(3).await.unwrap();
        assert_eq!(heard.texts(), ["0", "1", "2"]);
    });
}

#[test]
fn last_words_are_heard_before_the_news_of_the_death() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let py = pool(1).await;
        for deaths in 1..=3 {
            assert!(matches!(py.call::<()>("logs:logs_and_dies").await, Err(Error::WorkerDied(_))));
            until(|| heard.of("polyloop").len() == deaths).await;
            let told: Vec<_> = heard.all().iter().map(|news| news.text().to_owned()).collect();
            assert_eq!(told, ["last words", "a worker died"].repeat(deaths));
        }
    });
}

#[test]
fn a_flood_holds_up_no_worker_and_what_is_dropped_is_counted() {
    const COUNT: usize = 5000;
    run(|| async {
        let marks = Marks::new();
        let flooded = marks.at("flooded");
        let seen = flooded.clone();
        // The subscriber takes nothing more in until the flood is over.
        let (heard, _guard) = hear_and(LevelFilter::WARN, move |_| {
            while !seen.exists() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let py = pool(1).await;
        py.call::<()>("logs:floods").arg(COUNT).arg(&flooded).await.unwrap();
        let dropped = || -> u64 { heard.of("polyloop").iter().map(|news| news.number("dropped")).sum() };
        until(|| heard.texts().len() + dropped() as usize == COUNT).await;
        let numbers: Vec<usize> = heard.texts().iter().map(|text| text.parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers[..100].iter().copied().eq(0..100), "{numbers:?}");
        assert!(dropped() > 0);
        let told = &heard.of("polyloop")[0];
        assert_eq!((told.level, told.number("pid")), (Level::WARN, pids(&py.stats())[0].into()));
    });
}

#[test]
fn one_that_is_too_large_is_cut() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        pool(1).await.call::<()>("logs:logs_much").await.unwrap();
        let told = &heard.all()[0];
        assert!(told.text().starts_with("the beginning..."), "{told:?}");
        assert!(told.text().ends_with("characters left out]"), "{told:?}");
        assert!(told.get("exception").ends_with("...the end"), "{told:?}");
        assert!(!told.fields.contains_key("extra"));
    });
}

#[test]
fn what_is_no_record_is_told_and_harms_nobody() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let py = pool(1).await;
        let worker = pids(&py.stats());
        let garbage: [&[u8]; 5] = [b"\xff", b"\xc1", b"\x80", b"\x81\xa4name\xa4app.", b"\x81\xa7levelno\xa1x"];
        for record in garbage {
            py.call::<()>("logs:sends").arg(Bytes::new(record)).await.unwrap();
        }
        let told = heard.of("polyloop");
        assert_eq!(told.len(), garbage.len(), "{told:?}");
        for news in told {
            assert!(news.text().contains("can't be read") && !news.get("error").is_empty(), "{news:?}");
            assert_eq!((news.level, news.number("pid")), (Level::WARN, worker[0].into()));
        }
        py.call::<()>("logs:counts").arg(1).await.unwrap();
        assert_eq!((heard.texts(), pids(&py.stats())), (vec!["0".to_owned()], worker));
    });
}

#[test]
fn without_a_subscriber_what_workers_log_goes_to_stderr() {
    const SELF: &str = "logs::without_a_subscriber_what_workers_log_goes_to_stderr";
    if std::env::var_os(ROLE).is_some() {
        return run(|| async {
            let py = pool(1).await;
            py.call::<()>("logs:counts").arg(2).await.unwrap();
            assert_eq!(py.call::<usize>("logs:handlers").await.unwrap(), 0);
        });
    }
    run(|| async {
        let output = myself(&std::env::current_exe().unwrap(), SELF, "unheard").output().unwrap();
        let written = String::from_utf8_lossy(&output.stderr);
        // On one thread, then on several.
        assert!(output.status.success() && written.contains("0\n1\n0\n1\n"), "{written}");
    });
}
