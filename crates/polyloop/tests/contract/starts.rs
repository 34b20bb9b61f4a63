//! Pools that can't be made. What takes workers that can't start is in `alone`.

use futures_util::FutureExt;
use polyloop::Error;

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind};

over_each_kind! {
    an_impossible_shape_is_refused,
    a_pool_is_made_on_a_runtime,
}

async fn an_impossible_shape_is_refused<P: WorkerPool>() {
    let crowd = P::builder(1).concurrency(u32::MAX);
    for shape in [P::builder(0), P::builder(1).concurrency(0), crowd, P::builder(1 << 20), P::builder(40_000)] {
        assert!(matches!(shape.build().await, Err(Error::Config(_))));
    }
}

async fn a_pool_is_made_on_a_runtime<P: WorkerPool>() {
    let elsewhere = std::thread::spawn(|| P::builder(1).build().now_or_never().map(|built| built.err()));
    let refused = elsewhere.join().unwrap();
    assert!(matches!(refused, Some(Some(Error::Config(problem))) if problem.contains("runtime")));
}
