//! Schedules mean what they mean to the Go library: its answers are in `golden.txt`, made by `tools/cron`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keelson_cron::{Schedule, zone};

#[test]
fn times_and_complaints_are_those_of_the_go_library() {
    let mut lines = include_str!("golden.txt").lines();
    let starts: Vec<Timestamp> = lines
        .next()
        .into_iter()
        .flat_map(|line| line.split(' '))
        .map(|start| start.parse().expect("a time"))
        .collect();
    let (mut times, mut errors, mut wrong) = (0, 0, Vec::new());
    for line in lines {
        // Schedules have no bar; errors that quote them neither.
        let [kind, text, want] = line.splitn(3, '|').collect::<Vec<_>>()[..] else {
            panic!("not a golden line: {line}");
        };
        if kind == "error" {
            errors += 1;
            let got = Schedule::parse(text, TimeZone::UTC).err().map(|e| e.to_string());
            if got.as_deref() != Some(want) {
                wrong.push(format!("{text:?}: {got:?} instead of {want:?}"));
            }
            continue;
        }
        let zone = zone::load(kind).expect("a zone");
        let schedule = match Schedule::parse(text, zone) {
            Ok(schedule) => schedule,
            Err(error) => {
                wrong.push(format!("{text:?} is refused: {error}"));
                continue;
            }
        };
        for (start, want) in starts.iter().zip(want.split(',')) {
            let mut time = *start;
            let mut got = Vec::new();
            for _ in want.split(' ') {
                let Some(next) = schedule.next(time) else {
                    got.push("-".to_string());
                    break;
                };
                got.push((next.as_second() - time.as_second()).to_string());
                time = next;
            }
            times += got.len();
            let got = got.join(" ");
            if got != want {
                wrong.push(format!("{kind} {text:?} from {start}: {got} instead of {want}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(
        times > 20_000 && errors > 30,
        "{times} times, {errors} errors: the table is cut off"
    );
}

#[test]
fn what_is_accepted_is_bounded_in_work() {
    // The longest search: every day of five years, each refused.
    let never = Schedule::parse("59 23 31 2 *", TimeZone::UTC).expect("accepted");
    let end: Timestamp = "9999-12-30T22:00:00Z".parse().expect("a time");
    assert_eq!(never.next(end), None);
    let always = Schedule::parse("* * * * *", TimeZone::UTC).expect("accepted");
    assert_eq!(always.next(Timestamp::MAX), None, "the calendar's end is no crash");
    let rare = Schedule::parse("@every 2562047h", TimeZone::UTC).expect("accepted");
    assert_eq!(rare.next(Timestamp::MAX), None);
}
