//! `keelson-proto FILE.proto OUT-DIRECTORY`: messages, clients and servers as Rust, without a protoc binary.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: keelson-proto FILE.proto OUT-DIRECTORY".into());
    };
    let directory = Path::new(&file).parent().ok_or("the file has no directory")?;
    let descriptors = protox::compile([&file], [directory])?;
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(())
}
