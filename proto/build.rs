//! Generates the Rust types of the schema; protox stands in for protoc, so nothing is installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["schema/client.proto", "schema/stored.proto", "schema/cluster.proto"] {
        println!("cargo:rerun-if-changed={file}");
    }
    // Rare and large: without a box each send would take as much room as they do, in every queue.
    let rare = [
        ".natter.v1.ClientFrame.kind.register_prove",
        ".natter.v1.ClientFrame.kind.request_link",
        ".natter.stored.v1.Command.kind.start_registration",
        ".natter.stored.v1.Command.kind.prove_pin",
        ".natter.stored.v1.Command.kind.keep_account",
        ".natter.stored.v1.Command.kind.claim_alias",
    ];
    let own = protox::compile(["schema/client.proto", "schema/stored.proto"], ["schema"])?;
    let mut config = prost_build::Config::new();
    for path in rare {
        config.boxed(path);
    }
    config.bytes(["."]).compile_fds(own)?;
    let cluster = protox::compile(["schema/cluster.proto"], ["schema"])?;
    prost_build::Config::new()
        .bytes(["."])
        .extern_path(".natter.stored.v1", "crate::stored")
        .compile_fds(cluster)?;
    Ok(())
}
