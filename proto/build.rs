//! Generates the Rust types of the schema; protox stands in for protoc, so nothing is installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["schema/client.proto", "schema/stored.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["schema"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
