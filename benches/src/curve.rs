//! What many VEs cost: memory and disk as their number grows.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::memory::Usage;
use crate::plot::{Plot, Series};
use crate::report::{About, markdown};
use crate::run::{drop_caches, sh, sync};
use crate::system::{Kind, System, Touches};

/// What each VE does: reads as much as a small system at its start, runs programs, installs a package.
const WORK: &str = r#"
find /etc /usr/lib/systemd /usr/lib/x86_64-linux-gnu -xdev -type f -size -2048 -print0 2>/dev/null | xargs -0 cat >/dev/null
python3 -c 'import json, ssl, email.message'
perl -MPOSIX -e 'exit 0'
git --version >/dev/null
apt-get -qq -o APT::Sandbox::User=root install --no-install-recommends -y /opt/bench/debs/*.deb >/dev/null
echo "$$" >/etc/machine-number
"#;

/// Measurements of some systems.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// Where and when.
    pub about: About,
    /// What was measured, by system and number of VEs.
    pub points: Vec<Point>,
}

/// So many VEs of a system.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Point {
    /// The system.
    pub system: Kind,
    /// How many VEs there are.
    pub ves: usize,
    /// What they have added to what the system uses without any.
    pub added: Usage,
}

/// Makes VEs on a system that has none, up to each of `counts`, and measures there.
///
/// # Errors
/// What a VE or its work says.
pub fn measure(
    kind: Kind,
    system: &mut dyn System,
    counts: &[usize],
    told: &mut dyn FnMut(&Point),
) -> Result<Vec<Point>> {
    drop_caches()?;
    let before = Usage::now(&system.processes(), system.disk())?;
    let mut points = Vec::new();
    let mut made = 0;
    for &ves in counts {
        while made < ves {
            let ve = format!("ve-{made}");
            let root =
                system.make(&ve, Touches::Tree).with_context(|| format!("cannot make VE number {made}"))?;
            sh(&root, WORK).with_context(|| format!("VE number {made} cannot do its work"))?;
            made += 1;
        }
        sync();
        let point = Point {
            system: kind,
            ves,
            added: Usage::now(&system.processes(), system.disk())?.since(&before),
        };
        told(&point);
        points.push(point);
    }
    for number in 0..made {
        system.remove(&format!("ve-{number}"))?;
    }
    Ok(points)
}

/// Puts runs together; of a point that is in several, the last counts.
pub fn merge(curves: Vec<Curve>) -> Option<Curve> {
    let mut curves = curves.into_iter();
    let mut all = curves.next()?;
    for Curve { about, points } in curves {
        for point in points {
            all.points.retain(|known| (known.system, known.ves) != (point.system, point.ves));
            all.points.push(point);
        }
        all.about = about;
    }
    all.points.sort_by_key(|point| (point.system, point.ves));
    Some(all)
}

/// The points as a Markdown table.
pub fn table(curve: &Curve) -> String {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let lines = curve.points.iter().map(|point| {
        let Point { system, ves, added } = point;
        let each = |bytes: u64| mib(bytes / (*ves).max(1) as u64);
        vec![
            system.name().to_owned(),
            ves.to_string(),
            mib(added.page_cache_bytes),
            mib(added.slab_bytes),
            mib(added.processes_bytes),
            mib(added.memory_bytes()),
            each(added.memory_bytes()),
            mib(added.disk_bytes),
            each(added.disk_bytes),
        ]
    });
    let header =
        ["system", "VEs", "page cache", "slab", "processes", "memory", "memory a VE", "disk", "disk a VE"];
    format!("{}\n\n{}", curve.about, markdown(&header, lines.collect(), 1))
}

/// The points as a picture: memory and disk over the number of VEs.
pub fn picture(curve: &Curve) -> String {
    let series = |value: fn(&Usage) -> u64| -> Vec<Series> {
        let mut systems: Vec<Kind> = curve.points.iter().map(|point| point.system).collect();
        systems.dedup();
        let points = |kind: Kind| {
            let of = curve.points.iter().filter(move |point| point.system == kind);
            of.map(|point| (point.ves as f64, value(&point.added) as f64 / f64::from(1 << 20))).collect()
        };
        systems
            .into_iter()
            .map(|kind| Series { name: kind.name().to_owned(), points: points(kind) })
            .collect()
    };
    let plots = [
        Plot { title: "memory, MiB".to_owned(), series: series(Usage::memory_bytes) },
        Plot { title: "disk, MiB".to_owned(), series: series(|usage| usage.disk_bytes) },
    ];
    crate::plot::svg(&plots, "VEs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(Kind, usize, u64)]) -> Curve {
        let about = About::example();
        let point = |&(system, ves, mib): &(Kind, usize, u64)| Point {
            system,
            ves,
            added: Usage {
                page_cache_bytes: mib << 20,
                slab_bytes: 1 << 20,
                processes_bytes: 0,
                disk_bytes: mib << 21,
            },
        };
        Curve { about, points: points.iter().map(point).collect() }
    }

    #[test]
    fn a_table_has_totals_and_shares() {
        let text = table(&curve(&[(Kind::Vzfs, 10, 99)]));
        let last = text.lines().last().expect("a line");
        let cells: Vec<_> = last.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells, ["vzfs", "10", "99.0", "1.0", "0.0", "100.0", "10.0", "198.0", "19.8"]);
    }

    #[test]
    fn curves_are_put_together() {
        let first = curve(&[(Kind::Vzfs, 1, 1), (Kind::Vzfs, 10, 2)]);
        let second = curve(&[(Kind::Vzfs, 10, 7), (Kind::Native, 1, 5)]);
        let points = merge(vec![first, second]).expect("some").points;
        let cached: Vec<_> = points
            .iter()
            .map(|point| (point.system, point.ves, point.added.page_cache_bytes >> 20))
            .collect();
        assert_eq!(cached, [(Kind::Native, 1, 5), (Kind::Vzfs, 1, 1), (Kind::Vzfs, 10, 7)]);
        assert!(merge(Vec::new()).is_none());
    }
}
