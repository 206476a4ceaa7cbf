//! The environment that all fakes of one run share: randomness, clock, and the steps at which a crash can happen.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dtorrent::model::Timestamp;
use dtorrent::port::Clock;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

const START_MILLIS: i64 = 1_795_328_701_114; // 2026-11-22T06:25:01.114Z

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seeded randomness. Every random choice of a run is drawn from it, in an order that the seed determines.
pub struct SeededRng(Mutex<StdRng>);

impl SeededRng {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// Returns `true` with this probability, in percent.
    pub fn percent(&self, percent: u32) -> bool {
        self.below(100) < u64::from(percent)
    }

    pub fn below(&self, bound: u64) -> u64 {
        lock(&self.0).random_range(0..bound.max(1))
    }

    pub fn millis(&self, max: u64) -> Duration {
        Duration::from_millis(self.below(max + 1))
    }

    pub fn pick<T: Copy>(&self, from: &[T]) -> Option<T> {
        let place = usize::try_from(self.below(from.len() as u64)).expect("an index fits");
        from.get(place).copied()
    }

    pub fn fraction(&self) -> f64 {
        lock(&self.0).random()
    }
}

/// The environment of one run.
pub struct SimulationEnv {
    pub rng: SeededRng,
    began: Instant,
    process: Mutex<ProcessState>,
    pub crashed: Notify,
    trace: Option<Mutex<Vec<String>>>,
}

/// The process of the bridge.
#[derive(Default)]
struct ProcessState {
    /// Whether it has crashed: its calls then have no effect and never return.
    is_crashed: bool,
    crash_in: Option<u64>,
}

impl SimulationEnv {
    pub fn new(seed: u64, is_traced: bool) -> Arc<Self> {
        Arc::new(Self {
            rng: SeededRng::new(seed),
            began: Instant::now(),
            process: Mutex::default(),
            crashed: Notify::new(),
            trace: is_traced.then(Mutex::default),
        })
    }

    /// Adds a line to the trace, if one is recorded.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:>9.3}  {}", self.began.elapsed().as_secs_f64(), what());
            lock(trace).push(line);
        }
    }

    pub fn trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| lock(trace).clone()).unwrap_or_default()
    }

    /// Crashes the bridge after this many more steps.
    pub fn crash_in(&self, steps: u64) {
        lock(&self.process).crash_in = Some(steps);
    }

    pub fn mark_crashed(&self) {
        lock(&self.process).is_crashed = true;
    }

    pub fn mark_running(&self) {
        *lock(&self.process) = ProcessState::default();
    }

    pub fn is_crashed(&self) -> bool {
        lock(&self.process).is_crashed
    }

    /// A point at which the bridge can crash; the call then never returns. Some steps take time.
    pub async fn step(&self) {
        {
            let mut process = lock(&self.process);
            if let Some(left) = &mut process.crash_in {
                *left = left.saturating_sub(1);
                if *left == 0 && !process.is_crashed {
                    process.is_crashed = true;
                    self.crashed.notify_one();
                }
            }
        }
        if self.is_crashed() {
            return pending().await;
        }
        match self.rng.below(16) {
            0 => tokio::time::sleep(self.rng.millis(40)).await,
            1..=4 => tokio::task::yield_now().await,
            _ => {}
        }
        if self.is_crashed() {
            pending().await
        }
    }
}

impl Clock for SimulationEnv {
    fn now(&self) -> Timestamp {
        let millis = i64::try_from(self.began.elapsed().as_millis()).expect("a run is short");
        Timestamp::from_millis(START_MILLIS + millis)
    }
}
