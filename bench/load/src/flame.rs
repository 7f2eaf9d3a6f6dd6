//! Flame graphs: stacks that were seen, drawn as SVG, the widest where most time goes.

use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const LINE: f64 = 15.0;
/// What is narrower isn't drawn, so that a graph stays small.
const NARROWEST: f64 = 1.5;
/// A letter's width.
const LETTER: f64 = 6.2;
const MARGIN: f64 = 24.0;

/// Frames by name, and how often each was on the stack.
#[derive(Default, Debug)]
pub struct Frames {
    seen: u64,
    below: BTreeMap<String, Frames>,
}

impl Frames {
    /// The output of `perf script -F comm,ip,sym`: samples apart by empty lines, the innermost function first.
    pub fn of_perf(script: &str) -> Frames {
        let mut all = Frames::default();
        for sample in script.split("\n\n") {
            let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
            let Some(thread) = lines
                .next()
                .filter(|line| !line.starts_with('\t') && !line.starts_with("  "))
            else {
                continue;
            };
            let functions = lines.map(|line| function(line.trim()));
            let mut stack: Vec<String> = functions.collect();
            stack.push(thread.trim().to_owned());
            all.add(stack.into_iter().rev());
        }
        all
    }

    fn add(&mut self, stack: impl Iterator<Item = String>) {
        self.seen += 1;
        let mut at = self;
        for name in stack {
            at = at.below.entry(name).or_default();
            at.seen += 1;
        }
    }

    pub fn samples(&self) -> u64 {
        self.seen
    }

    fn depth(&self, least: u64) -> usize {
        let drawn = self.below.values().filter(|f| f.seen >= least);
        drawn.map(|f| 1 + f.depth(least)).max().unwrap_or(0)
    }

    /// The graph.
    pub fn svg(&self, title: &str) -> String {
        let unit = WIDTH / self.seen.max(1) as f64;
        let least = (NARROWEST / unit).ceil() as u64;
        let height = MARGIN * 2.0 + LINE * self.depth(least) as f64;
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"10\">\n\
             <style>rect{{stroke:#fff;stroke-width:.5}}text{{pointer-events:none}}</style>\n\
             <text x=\"4\" y=\"15\" font-size=\"13\">{}</text>\n",
            escaped(title)
        );
        self.draw(0.0, height - MARGIN - LINE, unit, least, &mut text);
        text.push_str("</svg>\n");
        text
    }

    fn draw(&self, mut x: f64, y: f64, unit: f64, least: u64, into: &mut String) {
        for (name, frame) in &self.below {
            let width = frame.seen as f64 * unit;
            if frame.seen >= least {
                let share = 100.0 * unit * frame.seen as f64 / WIDTH;
                let shown = escaped(name);
                let _ = write!(
                    into,
                    "<g><title>{shown} {share:.1}%</title><rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{LINE}\" fill=\"{}\"/>",
                    colour(name)
                );
                let letters = ((width - 4.0) / LETTER) as usize;
                if letters >= 4 {
                    let short: String = name.chars().take(letters).collect();
                    let _ = write!(
                        into,
                        "<text x=\"{:.1}\" y=\"{}\">{}</text>",
                        x + 2.0,
                        y + 11.0,
                        escaped(&short)
                    );
                }
                into.push_str("</g>\n");
                frame.draw(x, y - LINE, unit, least, into);
            }
            x += width;
        }
    }
}

/// `55d0 path::of::function+0x1f`: without address, offset and the compiler's hash, and with short names of generic parameters.
fn function(line: &str) -> String {
    let name = line.split_once(' ').map_or("", |(_, name)| name).trim();
    let name = name.split_once("+0x").map_or(name, |(name, _)| name);
    let hash = name.rsplit_once("::h").filter(|(_, hash)| hash.len() == 16);
    let name = hash.map_or(name, |(name, _)| name);
    // What parameters are made of says little and takes much.
    let (mut short, mut depth) = (String::new(), 0usize);
    for letter in name.chars() {
        depth += usize::from(letter == '<');
        match (letter, depth) {
            ('<', 2) => short.push_str("<…"),
            (_, ..2) | ('>', 2) => short.push(letter),
            _ => {}
        }
        depth = depth.saturating_sub(usize::from(letter == '>'));
    }
    if short.is_empty() {
        "[unknown]".into()
    } else {
        short.chars().take(120).collect()
    }
}

/// Of one crate, one colour; the kernel is grey.
fn colour(name: &str) -> String {
    let start = name
        .trim_start_matches(['<', '&', '_'])
        .split("::")
        .next()
        .unwrap_or_default();
    if !name.contains("::") {
        return "#c9c9c9".into();
    }
    let hash = start
        .bytes()
        .fold(7u32, |hash, b| hash.wrapping_mul(31).wrapping_add(u32::from(b)));
    let hue = if start.starts_with("keelson") {
        15 + hash % 35
    } else {
        80 + hash % 180
    };
    format!("hsl({hue},70%,72%)")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "worker\n\t  55d0 keelson_api::read::h0123456789abcdef+0x1f\n\t  55d1 main+0x2\n\n\
        worker\n\t  55d0 keelson_api::read::h0123456789abcdef+0x9\n\t  55d1 main+0x2\n\n\
        worker\n\t  ffff __do_sys_write\n\t  55d1 main+0x2\n\n";

    #[test]
    fn stacks_are_counted_from_the_outermost_in() {
        let frames = Frames::of_perf(SCRIPT);
        assert_eq!(frames.samples(), 3);
        let main = &frames.below["worker"].below["main"];
        assert_eq!(main.seen, 3);
        assert_eq!(main.below["keelson_api::read"].seen, 2);
        assert_eq!(main.below["__do_sys_write"].seen, 1);
    }

    #[test]
    fn a_graph_has_a_box_for_each_frame_that_is_wide_enough() {
        let svg = Frames::of_perf(SCRIPT).svg("reading & writing");
        assert_eq!(svg.matches("<rect").count(), 4);
        assert!(svg.contains("<title>keelson_api::read 66.7%</title>"), "{svg}");
        assert!(svg.contains("reading &amp; writing"));
        let mut many = Frames::default();
        (0..10_000).for_each(|n| many.add([format!("f{n}")].into_iter()));
        assert_eq!(many.svg("").matches("<rect").count(), 0);
    }

    #[test]
    fn names_are_short() {
        assert_eq!(
            function("1a <alloc::vec::Vec<alloc::vec::Vec<u8>> as core::fmt::Debug>::fmt+0x3"),
            "<alloc::vec::Vec<…> as core::fmt::Debug>::fmt"
        );
        assert_eq!(function("1a"), "[unknown]");
    }
}
