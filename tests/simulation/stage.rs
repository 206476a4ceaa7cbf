//! What all the fakes of one run share: the dice, the clock, the steps between which a crash may come.

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

/// Seeded randomness. Everything random in a run comes from here, in an order that the seed decides.
pub struct Dice(Mutex<StdRng>);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// True in so many of a hundred.
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

/// Where one run is played.
pub struct Stage {
    pub dice: Dice,
    began: Instant,
    life: Mutex<Presence>,
    pub crashed: Notify,
    trace: Option<Mutex<Vec<String>>>,
}

/// The bridge's present life.
#[derive(Default)]
struct Presence {
    /// Nothing that a dead bridge asks for is done or answered.
    is_dead: bool,
    crash_in: Option<u64>,
}

impl Stage {
    pub fn new(seed: u64, is_traced: bool) -> Arc<Self> {
        Arc::new(Self {
            dice: Dice::new(seed),
            began: Instant::now(),
            life: Mutex::default(),
            crashed: Notify::new(),
            trace: is_traced.then(Mutex::default),
        })
    }

    /// Says what happened, if anybody wants to know.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:>9.3}  {}", self.began.elapsed().as_secs_f64(), what());
            lock(trace).push(line);
        }
    }

    pub fn trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| lock(trace).clone()).unwrap_or_default()
    }

    /// The bridge dies after so many more steps.
    pub fn crash_in(&self, steps: u64) {
        lock(&self.life).crash_in = Some(steps);
    }

    pub fn die(&self) {
        lock(&self.life).is_dead = true;
    }

    pub fn live_again(&self) {
        *lock(&self.life) = Presence::default();
    }

    pub fn is_dead(&self) -> bool {
        lock(&self.life).is_dead
    }

    /// A point at which the bridge may die; it then never gets an answer. Sometimes it takes a while.
    pub async fn step(&self) {
        {
            let mut life = lock(&self.life);
            if let Some(left) = &mut life.crash_in {
                *left = left.saturating_sub(1);
                if *left == 0 && !life.is_dead {
                    life.is_dead = true;
                    self.crashed.notify_one();
                }
            }
        }
        if self.is_dead() {
            return pending().await;
        }
        match self.dice.below(16) {
            0 => tokio::time::sleep(self.dice.millis(40)).await,
            1..=4 => tokio::task::yield_now().await,
            _ => {}
        }
        if self.is_dead() {
            pending().await
        }
    }
}

impl Clock for Stage {
    fn now(&self) -> Timestamp {
        let millis = i64::try_from(self.began.elapsed().as_millis()).expect("a run is short");
        Timestamp::from_millis(START_MILLIS + millis)
    }
}
