//! Generates the Rust types of the schema; protox stands in for protoc, so nothing is installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["schema/client.proto", "schema/stored.proto", "schema/cluster.proto"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let own = protox::compile(["schema/client.proto", "schema/stored.proto"], ["schema"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(own)?;
    let cluster = protox::compile(["schema/cluster.proto"], ["schema"])?;
    prost_build::Config::new()
        .bytes(["."])
        .extern_path(".natter.stored.v1", "crate::stored")
        .compile_fds(cluster)?;
    Ok(())
}
