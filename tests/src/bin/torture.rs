//! `make torture`: tries one scenario after the other, each with a seed of its own, until the time is over or something is lost.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use vzfs_tests::torture::random::Random;
use vzfs_tests::torture::{Effort, Scenario};

const USAGE: &str = "\
torture --minutes N [--seed S] [SCENARIO...]   tries scenarios, all or the named ones, for so long
torture --seed S SCENARIO                      tries one scenario with one seed
torture --list                                 names the scenarios";

struct Args {
    minutes: Option<u64>,
    seed: Option<u64>,
    scenarios: Vec<Scenario>,
    list: bool,
}

fn args() -> Result<Args, String> {
    let mut args = Args { minutes: None, seed: None, scenarios: Vec::new(), list: false };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut number = || {
            let value = given.next().ok_or_else(|| format!("{arg} needs a number"))?;
            value.parse::<u64>().map_err(|_| format!("{value} is no number"))
        };
        match arg.as_str() {
            "--minutes" => args.minutes = Some(number()?),
            "--seed" => args.seed = Some(number()?),
            "--list" => args.list = true,
            name => args.scenarios.push(name.parse()?),
        }
    }
    let one = args.seed.is_some() && args.scenarios.len() == 1;
    if args.minutes.is_none() && !one && !args.list {
        return Err(USAGE.to_owned());
    }
    if args.scenarios.is_empty() {
        args.scenarios = Scenario::ALL.to_vec();
    }
    Ok(args)
}

#[derive(Default)]
struct Sum {
    rounds: usize,
    faults: usize,
    time: Duration,
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(usage) => {
            println!("{usage}");
            return ExitCode::from(2);
        }
    };
    if args.list {
        for scenario in Scenario::ALL {
            println!("{:<20} {}", scenario.name(), scenario.fault());
        }
        return ExitCode::SUCCESS;
    }
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let mut random = Random::new(args.seed.unwrap_or(clock));
    let begin = Instant::now();
    let end = args.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let mut sums: BTreeMap<&str, (Scenario, Sum)> = BTreeMap::new();
    let mut lost = false;
    'rounds: loop {
        for scenario in &args.scenarios {
            let seed = match (end, args.seed) {
                (None, Some(seed)) => seed,
                // Short, so that people can type them.
                _ => random.number() >> 32,
            };
            let started = Instant::now();
            println!("{} --seed {seed}", scenario.name());
            let tried = catch_unwind(AssertUnwindSafe(|| scenario.run(seed, Effort::Long)));
            let failure = match tried {
                Ok(Ok(tried)) => {
                    println!("    {} {}: {}", tried.faults, scenario.fault(), tried.detail);
                    let (_, sum) = sums.entry(scenario.name()).or_insert_with(|| (*scenario, Sum::default()));
                    sum.rounds += 1;
                    sum.faults += tried.faults;
                    sum.time += started.elapsed();
                    None
                }
                Ok(Err(failure)) => Some(failure),
                Err(_) => Some("a check panicked; its message is above".to_owned()),
            };
            if let Some(failure) = failure {
                println!("LOST: {failure}\nagain: make torture SEED={seed} SCENARIO={}", scenario.name());
                lost = true;
                break 'rounds;
            }
            if end.is_none_or(|end| begin.elapsed() >= end) {
                break 'rounds;
            }
        }
    }
    println!("\n| scenario | faults | tried | rounds | minutes | lost |\n|---|---|---|---|---|---|");
    for (name, (scenario, sum)) in &sums {
        let minutes = sum.time.as_secs_f64() / 60.0;
        println!(
            "| {name} | {} | {} | {} | {minutes:.1} | nothing |",
            scenario.fault(),
            sum.faults,
            sum.rounds
        );
    }
    if lost { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
