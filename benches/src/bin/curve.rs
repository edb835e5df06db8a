//! `curve`: what many VEs cost.
#![allow(clippy::print_stdout, reason = "a program that prints tables")]

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use vzfs_benches::curve::{Curve, measure, merge, picture, table};
use vzfs_benches::options::{Options, write};
use vzfs_benches::report::{About, read};
use vzfs_benches::run::say;
use vzfs_benches::system::{Kind, open};

/// Makes more and more writable VEs, each of which reads files, runs programs and installs a package, and prints what memory and disk they take.
#[derive(Parser, Debug)]
#[command(name = "curve")]
struct Arguments {
    /// The systems.
    #[arg(long, value_delimiter = ',', default_values = ["vzfs", "overlayfs", "native"])]
    systems: Vec<Kind>,
    /// Numbers of VEs at which is measured.
    #[arg(long, value_delimiter = ',', default_values = ["1", "10", "50", "100", "200", "300"])]
    counts: Vec<usize>,
    /// Most full copies: each takes a gigabyte of the disk.
    #[arg(long, default_value_t = 20)]
    most_copies: usize,
    /// Write a picture to this file, as SVG.
    #[arg(long)]
    picture: Option<PathBuf>,
    /// Measure nothing: print what these files of earlier runs say, together.
    #[arg(long, num_args = 1.., conflicts_with_all = ["systems", "counts"])]
    merge: Vec<PathBuf>,
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let curve = if arguments.merge.is_empty() {
        run(&arguments)?
    } else {
        merge(read(&arguments.merge)?).context("there is nothing to read")?
    };
    let told = arguments.options.tell(&curve, table)?;
    if let Some(path) = &arguments.picture {
        write(path, &picture(&curve))?;
    }
    print!("{told}");
    Ok(())
}

fn run(arguments: &Arguments) -> Result<Curve> {
    let place = arguments.options.place(false)?;
    let mut counts = arguments.counts.clone();
    counts.sort_unstable();
    let mut points = Vec::new();
    for &kind in &arguments.systems {
        let copies = kind == Kind::Native;
        let counts: Vec<_> =
            counts.iter().copied().filter(|count| !copies || *count <= arguments.most_copies).collect();
        say(&format!("{}: a fresh filesystem with the tree", kind.name()));
        let mut system = open(kind, &place)?;
        let mut told = |point: &vzfs_benches::curve::Point| say(&format!("{point:?}"));
        points.extend(measure(kind, system.as_mut(), &counts, &mut told)?);
    }
    Ok(Curve { about: About::here(arguments.options.filesystem)?, points })
}
