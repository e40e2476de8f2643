//! A hundred thousand gateways lose their hub in one second: how many come back in each second, by the agent's own
//! back-off and the limits of IoT Hub. Draws docs/reconnect.svg and the table beside it in docs/fleet.md, and fails
//! when either is not what it would draw (`make reconnect-plot` writes the plot anew).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write;
use std::time::Duration;

use fwupdate::backoff::Backoff;

const DEVICES: usize = 100_000;
/// Seconds that are drawn.
const SHOWN: usize = 900;
/// Seconds that are simulated at most.
const END: usize = 3600;

/// A hub, and how many connects it serves in a second: the higher of 100 and 12 a unit in S1, 120 a unit in S2, 6,000
/// a unit in S3 (learn.microsoft.com, "IoT Hub quotas and throttling", "New device connections").
const HUBS: [(&str, usize); 3] = [("S1, 10 units", 120), ("S2, 10 units", 1200), ("S3, 1 unit", 6000)];

/// `cloud.reconnect_first`, `cloud.reconnect_longest`, seconds, and a colour.
const SETTINGS: [(&str, u64, u64, &str); 3] = [
    ("first 2s, longest 100s", 2, 100, "#c0392b"),
    ("first 10s, longest 5min (default)", 10, 300, "#2471a3"),
    ("first 2min, longest 10min", 120, 600, "#1e8449"),
];

/// What one run showed.
struct Run {
    /// Connects tried in each second since the hub dropped all.
    tried: Vec<usize>,
    /// Seconds until the last gateway was back; `None`: not within [`END`].
    all_back: Option<usize>,
    /// Connects that a gateway tried on average.
    cost: f64,
}

/// All sessions end at once; the hub is there again and serves `limit` connects in each second.
fn run(first: u64, longest: u64, limit: usize) -> Run {
    let mut random = fastrand::Rng::with_seed(1);
    let mut next = BinaryHeap::new();
    let mut fleet: Vec<Backoff> = Vec::with_capacity(DEVICES);
    for device in 0..DEVICES {
        let mut backoff = Backoff::of_sessions(Duration::from_secs(first), Duration::from_secs(longest));
        next.push(Reverse((backoff.next(random.f64()), device)));
        fleet.push(backoff);
    }
    let (mut tried, mut served) = (vec![0; END], vec![0; END]);
    let mut all_back = None;
    while let Some(Reverse((at, device))) = next.pop() {
        let second = usize::try_from(at.as_secs()).unwrap();
        if second >= END {
            break;
        }
        tried[second] += 1;
        if served[second] < limit {
            served[second] += 1;
            all_back = next.is_empty().then_some(second + 1);
        } else {
            next.push(Reverse((at + fleet[device].next(random.f64()), device)));
        }
    }
    let cost = tried.iter().sum::<usize>() as f64 / DEVICES as f64;
    Run { tried, all_back, cost }
}

/// Peak of the connects in a second, the time until all are back, and what it costs each gateway.
fn table(runs: &[Vec<Run>]) -> String {
    let mut text =
        String::from("| settings | hub | connects a second | peak | all back after | connects a gateway |\n");
    text.push_str("|---|---|---|---|---|---|\n");
    for ((name, ..), runs) in SETTINGS.iter().zip(runs) {
        for ((hub, limit), run) in HUBS.iter().zip(runs) {
            let peak = run.tried.iter().max().unwrap();
            let back = run.all_back.map_or("more than an hour".to_owned(), |seconds| format!("{seconds} s"));
            writeln!(text, "| {name} | {hub} | {limit} | {peak} | {back} | {:.1} |", run.cost).unwrap();
        }
    }
    text
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 20.0;

fn x(second: usize) -> f64 {
    LEFT + second as f64 / SHOWN as f64 * (WIDTH - LEFT - 20.0)
}

/// Logarithmic, from 1 to 100,000.
fn y(count: usize) -> f64 {
    let share = (count.max(1) as f64).log10() / 5.0;
    HEIGHT - 45.0 - share * (HEIGHT - 45.0 - TOP)
}

fn label(x: f64, y: f64, anchor: &str, colour: &str, words: &str) -> String {
    format!("<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>\n")
}

/// Connects tried in each second against a hub of S2, 10 units.
fn plot(runs: &[Vec<Run>]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    svg += &label(
        x(SHOWN / 2),
        HEIGHT - 8.0,
        "middle",
        "black",
        "seconds since the hub dropped 100,000 gateways",
    );
    svg +=
        &label(LEFT, 14.0, "start", "black", "connects tried in a second, against a hub of S2 with 10 units");
    for power in 0..=5 {
        let count = 10_usize.pow(power);
        svg += &label(LEFT - 6.0, y(count) + 4.0, "end", "black", &count.to_string());
    }
    for second in (0..=SHOWN).step_by(100) {
        svg += &label(x(second), HEIGHT - 28.0, "middle", "black", &second.to_string());
    }
    for (number, (name, _, _, colour)) in SETTINGS.iter().enumerate() {
        svg += &label(WIDTH - 24.0, 40.0 + 16.0 * number as f64, "end", colour, name);
    }
    for (name, limit) in HUBS {
        svg += &label(WIDTH - 24.0, y(limit) - 4.0, "end", "#555", &format!("limit of {name}: {limit}"));
        let (from, to, at) = (x(0), x(SHOWN), y(limit));
        writeln!(svg, "<path d=\"M{from:.1} {at:.1}H{to:.1}\" stroke=\"#888\" stroke-dasharray=\"5 4\"/>")
            .unwrap();
    }
    for ((_, _, _, colour), runs) in SETTINGS.iter().zip(runs) {
        let points: Vec<String> = runs[1].tried[..=SHOWN]
            .iter()
            .enumerate()
            .map(|(second, tried)| format!("{:.1},{:.1}", x(second), y(*tried)))
            .collect();
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", points.join(" "))
            .unwrap();
    }
    writeln!(
        svg,
        "<path d=\"M{:.1} {TOP}V{:.1}H{:.1}\" stroke=\"black\" fill=\"none\"/>\n</svg>",
        x(0),
        y(1),
        x(SHOWN)
    )
    .unwrap();
    svg
}

#[test]
fn a_fleet_that_was_dropped_comes_back_as_documented() {
    let runs: Vec<Vec<Run>> = SETTINGS
        .iter()
        .map(|(_, first, longest, _)| HUBS.iter().map(|(_, limit)| run(*first, *longest, *limit)).collect())
        .collect();
    let (table, plot) = (table(&runs), plot(&runs));
    println!("{table}");
    let peak = |setting: usize, hub: usize| *runs[setting][hub].tried.iter().max().unwrap();
    // A first pause spread over devices / limit seconds keeps a fleet below the limit from the first second on.
    assert!(peak(2, 1) <= HUBS[1].1, "{} connects in a second", peak(2, 1));
    assert!(runs[1].iter().all(|run| run.all_back.is_some()), "a gateway never came back");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reconnect.svg");
    if std::env::var_os("FWUPDATE_DRAW").is_some() {
        std::fs::write(file, &plot).unwrap();
    }
    assert!(std::fs::read_to_string(file).unwrap_or_default() == plot, "draw it anew: make reconnect-plot");
    let documented = include_str!("../../docs/fleet.md");
    assert!(documented.contains(&table), "docs/fleet.md does not hold this table");
}
