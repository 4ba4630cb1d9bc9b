use std::sync::atomic::AtomicUsize;

use super::*;

/// In pools of which the last has more threads than this machine may have cores, and so no team.
fn in_pools(check: impl Fn() + Sync) {
    for num_threads in [1, 2, num_cores(), 2 * num_cores() + 1] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| with_team(&check));
    }
}

/// Runs that many tasks and tells how often each was done.
fn count(num_tasks: usize, task: impl Fn(usize) + Sync) -> Vec<usize> {
    let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
    each_task(num_tasks, |i| {
        task(i);
        counts[i].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn each_task_is_done_once_before_the_next_part_begins() {
    in_pools(|| {
        for num_tasks in (0..300).chain([70_000]) {
            assert_eq!(count(num_tasks, |_| ()), vec![1; num_tasks]);
        }
    });
    assert_eq!(count(9, |_| ()), [1; 9], "without a team");
}

#[test]
fn each_chunk_comes_with_those_of_the_other_slices() {
    in_pools(|| {
        let (mut fours, mut twos) = (vec![0; 4 * 1001 + 3], vec![0; 2 * 1001]);
        each_chunk([(&mut fours, 4), (&mut twos, 2)], 7, |i, [four, two]| {
            four.fill(i + 1);
            two.fill(i + 1);
        });
        assert!(fours[..4004].iter().enumerate().all(|(at, i)| *i == at / 4 + 1));
        assert!(twos.iter().enumerate().all(|(at, i)| *i == at / 2 + 1));
        assert_eq!(fours[4004..], [0; 3]);
    });
}

/// A part that ends only where there is a second thread, if there is one.
fn need_another() {
    let num_done = AtomicUsize::new(0);
    let wait = |i: usize| {
        // In its own share or another's, each of the others has to be taken by somebody else.
        let start = Instant::now();
        while i == 0 && rayon::current_num_threads() > 1 && num_done.load(Ordering::Acquire) < 7 {
            assert!(start.elapsed() < Duration::from_secs(20), "nobody else has come");
            std::thread::yield_now();
        }
        num_done.fetch_add(1, Ordering::Release);
    };
    assert_eq!(count(8, wait), [1; 8]);
}

#[test]
fn slow_tasks_leave_the_others_to_other_threads() {
    in_pools(need_another);
}

#[test]
fn who_helps_does_not_wait_for_ever_for_the_next_part() {
    let team = Team::new(2, 0);
    team.num_awaited.store(1, Ordering::Relaxed);
    team.help(1);
    assert!(team.has_left.into_inner() && !team.is_over.into_inner());
    assert_eq!(team.num_awaited.into_inner(), 0);
}

#[test]
fn the_next_part_calls_those_back_who_have_left() {
    in_pools(|| {
        for _ in 0..3 {
            need_another();
            std::thread::sleep(3 * PATIENCE);
        }
        need_another();
    });
}

#[test]
fn tasks_may_have_tasks_of_their_own_and_use_rayon() {
    in_pools(|| {
        let sum = AtomicUsize::new(0);
        each_task(20, |i| {
            each_task(i, |_| {
                sum.fetch_add((0..3usize).into_par_iter().sum(), Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 190 * 3);
    });
}

#[test]
fn steps_at_the_same_time_do_not_wait_for_each_other() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_cores()).build().unwrap();
    let step = || {
        let mut sum = 0;
        for num_tasks in 0..60 {
            sum += count(num_tasks, |_| ()).into_par_iter().with_max_len(1).sum::<usize>();
        }
        sum
    };
    std::thread::scope(|scope| {
        let engines = [(); 3].map(|()| {
            scope.spawn(|| (0..40).all(|_| pool.install(|| with_team(step)) == 59 * 60 / 2))
        });
        assert!(engines.into_iter().all(|engine| engine.join().unwrap()));
    });
    in_pools(|| assert_eq!(with_team(|| count(9, |_| ())), [1; 9]));
}

#[test]
fn a_panic_goes_on_when_all_tasks_are_done_and_the_team_lives() {
    in_pools(|| {
        for bad in 0..10 {
            let num_done = AtomicUsize::new(0);
            let all = || {
                each_task(10, |i| {
                    assert!(i != bad, "on purpose");
                    num_done.fetch_add(1, Ordering::Relaxed);
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(all)).is_err());
            assert_eq!(count(10, |_| ()), [1; 10]);
        }
    });
}

#[test]
fn a_step_that_panics_ends_its_team() {
    for num_threads in [1, 2, num_cores()] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let step = || with_team(|| each_task(5, |i| assert!(i != 3, "on purpose")));
        for _ in 0..3 {
            assert!(catch_unwind(AssertUnwindSafe(|| pool.install(step))).is_err());
        }
        assert_eq!(pool.install(|| with_team(|| count(5, |_| ()))), [1; 5]);
    }
    assert_eq!(with_team(|| 7), 7, "from outside of any pool");
}
