//! A fetch that is broken off at a change of the file system is whole or absent, and goes on later.

use super::*;

/// The process is killed, a write is torn, the power goes, or the disk is full at the `at`-th change of the file system.
fn crash(mode: &str, at: usize) -> (i32, String) {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[cut(70_000, &zip), serve(&zip)]);
    let first = {
        let mut command = fetching.command(&[]);
        command.envs(common::crash_variables(&fetching.lab.path(""), mode, at));
        common::ran(command.output().unwrap())
    };
    let target = fetching.lab.path("data/tasks/toy");
    if target.exists() {
        let listed = fetching.lab.ok(&["data", "list", "toy", "--to", "data", "--catalogue", "catalogue.json"]).stdout;
        assert!(listed.contains("here     yes"), "{mode} at {at}: {listed}");
    }
    let again = fetching.run(&[]);
    assert_eq!(again.code, 0, "{mode} at {at}, then again: {}", again.stderr);
    assert_eq!(fetching.lab.read("data/tasks/toy/train.tsv").len(), 300_018, "{mode} at {at}");
    assert_eq!(snapshot(&fetching.lab.path("data")).len(), 3, "{mode} at {at}: something is left");
    (first.code, first.stderr)
}

const MODES: [&str; 5] = ["kill", "torn", "power", "fail", "full"];

fn try_crash(mode: &str, at: usize) -> bool {
    let (code, stderr) = crash(mode, at);
    let last = stderr.lines().last().unwrap_or_default();
    // -1: ended by a signal.
    let told = code == 1 && last.contains("No space left");
    assert!(code == 0 || code == -1 || told, "{mode} at {at}: {code} {stderr}");
    code != 0
}

#[test]
fn some_crash_points_of_a_fetch() {
    let broken = (0..10).filter(|i| try_crash(MODES[i % 5], 4 + 8 * i)).count();
    assert!(broken >= 6, "{broken}");
}

#[test]
#[ignore = "slow: make test-crash"]
fn every_crash_point_of_a_fetch() {
    let step = std::env::var("CRASH_STEP").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let all = move |mode| {
        // At the end the process ends before the point comes.
        let points = (1..).step_by(step).take_while(|at| (0..3).any(|more| try_crash(mode, at + more))).count();
        println!("{mode}: {points} points");
        assert!(points * step > 15, "{mode}: {points}");
    };
    std::thread::scope(|scope| MODES.map(|mode| scope.spawn(move || all(mode))).map(|thread| thread.join().unwrap()));
}
