//! What README.md says is run: its commands are read out of it and done, word for word but for the port
//! numbers, on terminals as a newcomer has them. Those of the other manuals are run in `manuals.rs`.

use crate::terminals::{Desk, Terminal, register, text_of};
use std::fs;
use tests::node::{PATIENCE, until};

/// The commands in the code blocks of a text, each as it is written.
pub(crate) fn commands(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    let bare = lines.map(|line| line.split(" # ").next().unwrap().trim());
    bare.filter(|line| line.starts_with("natter ")).map(str::to_owned).collect()
}

/// The commands of README.md, section "Try it".
fn tried() -> Vec<String> {
    let readme = text_of("README.md");
    let (_, section) = readme.split_once("\n## Try it\n").unwrap();
    commands(section.split("\n## ").next().unwrap())
}

/// Writes the first message to somebody whose chat has no conversation open. Enter is pressed until it is
/// sent: the person may not be found yet, and then what was typed stays.
async fn write(from: &mut Terminal, words: &str, to: &Terminal) {
    from.types(words);
    let arrived = || {
        from.types("\r");
        Ok(to.text().contains("Tab opens").then_some(()))
    };
    until("the first message", PATIENCE, arrived).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_who_does_what_the_readme_says_chats_with_somebody() {
    let (desk, lines) = (Desk::new(), tried());
    let [serve, ada, bob] = &lines[..3] else { panic!("{lines:?}") };
    let node = desk.open(serve);
    node.shows("node ready").await;
    let early = bob.replace("--as bob", "--as eve").replace("chat ada", "chat bob");
    let mut ada = desk.open(ada);
    register(&mut ada, "ada", &[&node]).await;
    let mut eve = desk.open(&early);
    register(&mut eve, "eve", &[&node]).await;
    eve.shows("--as bob").await; // Nobody is bob yet, and this is what he has to do.
    drop(eve);
    let mut bob = desk.open(bob);
    register(&mut bob, "bob", &[&node]).await;
    write(&mut bob, "hello-ada", &ada).await;
    ada.types("\t");
    ada.shows("hello-ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_nodes_of_the_readme_are_a_cluster_and_one_of_them_may_be_killed() {
    let (desk, lines) = (Desk::new(), tried());
    let [serve @ .., status, carol, dave] = &lines[3..] else { panic!("{lines:?}") };
    let mut nodes = Vec::new();
    for command in serve {
        nodes.push(desk.open(command));
        nodes.last().unwrap().shows("node ready").await;
    }
    assert_eq!(nodes.len(), 3, "{serve:?}");
    let told = || {
        let (done, said) = desk.run(status);
        assert!(done, "{said}");
        Ok((said.contains("3 nodes") && !said.contains("starting")).then_some(()))
    };
    until("three members", PATIENCE, told).await.unwrap();
    let all: Vec<&Terminal> = nodes.iter().collect();
    let mut carol = desk.open(carol);
    register(&mut carol, "carol", &all).await;
    let mut dave = desk.open(dave);
    register(&mut dave, "dave", &all).await;
    write(&mut dave, "before-the-kill", &carol).await;
    carol.types("\t");
    carol.shows("before-the-kill").await;

    // The node that Carol's list begins with, where she is connected.
    let pid = fs::read_to_string(desk.path("node1/store/lock")).unwrap();
    let (killed, said) = desk.run(&format!("kill -9 {}", pid.trim()));
    assert!(killed, "{said}");
    dave.types("after-the-kill\r");
    carol.shows("after-the-kill").await;
    carol.types("I-am-elsewhere\r");
    dave.shows("I-am-elsewhere").await;
}
