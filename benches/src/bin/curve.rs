//! `curve`: what many VEs cost.
#![allow(clippy::print_stdout, reason = "a program that prints tables")]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use vzfs_benches::curve::{Curve, measure, merge, picture, table};
use vzfs_benches::report::{About, Format, read};
use vzfs_benches::run::say;
use vzfs_benches::source;
use vzfs_benches::system::{Kind, Place, Under, open};

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
    /// The filesystem under all of them.
    #[arg(long, default_value = "ext4")]
    filesystem: Under,
    /// What is printed.
    #[arg(long, default_value = "table")]
    format: Format,
    /// Write the results to this file, as JSON.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Write a picture to this file, as SVG.
    #[arg(long)]
    picture: Option<PathBuf>,
    /// Measure nothing: print what these files of earlier runs say, together.
    #[arg(long, num_args = 1.., conflicts_with_all = ["systems", "counts"])]
    merge: Vec<PathBuf>,
    /// The program of fuse-overlayfs 2.
    #[arg(long, env = "FUSE_OVERLAYFS_2", default_value = "fuse-overlayfs-2", hide = true)]
    fuse_overlayfs_2: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let curve = if arguments.merge.is_empty() {
        run(&arguments)?
    } else {
        merge(read(&arguments.merge)?).context("there is nothing to read")?
    };
    let json = serde_json::to_string_pretty(&curve)? + "\n";
    let write = |path: &PathBuf, text: &str| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    arguments.output.iter().try_for_each(|path| write(path, &json))?;
    arguments.picture.iter().try_for_each(|path| write(path, &picture(&curve)))?;
    match arguments.format {
        Format::Json => print!("{json}"),
        Format::Table => print!("{}", table(&curve)),
    }
    Ok(())
}

fn run(arguments: &Arguments) -> Result<Curve> {
    let place = Place {
        tree: source::tree().context("cannot make the tree")?,
        huge: false,
        under: arguments.filesystem,
        fuse_overlayfs_2: arguments.fuse_overlayfs_2.clone(),
    };
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
    Ok(Curve { about: About::here(arguments.filesystem)?, points })
}
