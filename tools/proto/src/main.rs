//! `keelson-proto FILE.proto OUT-DIRECTORY`: messages, clients and servers as Rust, without a protoc binary.
//!
//! A message with a field that its protocol marks as secret gets no `Debug`.

use std::path::Path;

use protox::Compiler;
use protox::prost_reflect::{DescriptorPool, Value};

/// The option of fields by which a protocol marks secrets.
const SECRET: &str = "csi.v1.csi_secret";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: keelson-proto FILE.proto OUT-DIRECTORY".into());
    };
    let directory = Path::new(&file).parent().ok_or("the file has no directory")?;
    let mut compiler = Compiler::new([directory])?;
    compiler.include_source_info(true).include_imports(true).open_file(&file)?;
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug(secret(&compiler.descriptor_pool()))
        .out_dir(out)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// Messages with a secret in them.
fn secret(pool: &DescriptorPool) -> Vec<String> {
    let Some(mark) = pool.get_extension_by_name(SECRET) else {
        return Vec::new();
    };
    let marked = |value: &Value| value.as_bool().unwrap_or_default();
    pool.all_messages()
        .filter(|m| m.fields().any(|f| marked(&f.options().get_extension(&mark))))
        .map(|m| m.full_name().to_string())
        .collect()
}
