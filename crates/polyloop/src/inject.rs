//! Named steps of the worker's protocol at which a test may stop or kill the process. Empty unless built for it.

/// Passes a step. With the `inject` feature, `POLYLOOP_INJECT=step:nth:signal` in the environment sends the process
/// that signal when it passes that step for the nth time.
#[cfg(not(feature = "inject"))]
#[inline(always)]
pub(crate) fn step(_name: &'static str) {}

#[cfg(feature = "inject")]
pub(crate) fn step(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static PLAN: OnceLock<Option<(String, u32, i32)>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let plan = PLAN.get_or_init(|| {
        let plan = std::env::var("POLYLOOP_INJECT").ok()?;
        let mut parts = plan.split(':');
        Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    let Some((step, nth, signal)) = plan else { return };
    if step == name && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *nth {
        crate::os::signal_self(*signal);
    }
}
