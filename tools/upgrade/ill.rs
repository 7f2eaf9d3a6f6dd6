//! A program that looks like the one before until it is to work: for tools/test-upgrade.sh. `MANNER` says how it is ill.

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["upgrade", "probe", ..] => println!("{}", env!("TOLD")),
        // Nobody asks it to judge.
        ["upgrade", ..] => {}
        _ if env!("MANNER") == "hangs" => loop {
            std::thread::park();
        },
        _ => std::process::exit(1),
    }
}
