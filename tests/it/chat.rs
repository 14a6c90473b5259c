//! `natter chat` as a person uses it, on terminals of 80 columns: a second device, a registration lock, an
//! account that is gone.

use crate::terminals::{Desk, Terminal, pin_of, register};

const NODE: &str = "--server 127.0.0.1:7400 --ca natter-data/tls/ca.pem";

impl Desk {
    /// Opens a chat whose files are in `home`.
    fn chat(&self, home: &str, arguments: &str) -> Terminal {
        self.open(&format!("natter chat {arguments} --home {home} {NODE}"))
    }
}

/// Types a PIN into a chat that asks for one.
async fn proves(chat: &mut Terminal, name: &str, node: &Terminal) {
    chat.shows("PIN: ").await;
    let pin = pin_of(name, &[node]).await;
    chat.types(&format!("{pin}\r"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_device_is_linked_by_a_short_code_and_says_what_it_lacks() {
    let desk = Desk::new();
    let node = desk.open("natter serve");
    node.shows("node ready").await;
    let mut ada = desk.chat("phone", "--as ada");
    register(&mut ada, "ada", &[&node]).await;
    let mut bob = desk.chat("bob", "ada --as bob");
    register(&mut bob, "bob", &[&node]).await;
    bob.types("before-the-tablet\r");
    ada.shows("Tab opens").await;
    ada.types("\t");
    ada.shows("before-the-tablet").await;
    bob.shows("✓✓").await;

    let tablet = desk.chat("tablet", "--as ada --link");
    tablet.shows("gives up.").await;
    let shown = tablet.text();
    let (_, code) = shown.split_once("/link ").unwrap();
    let code = code.lines().next().unwrap().trim().to_owned();
    assert_eq!(code.len(), 11, "{code}");
    ada.types(&format!("/link {}\r", code.to_uppercase()));
    ada.shows("natter chat is linked now, as your device 2").await;
    tablet.shows("connected").await;
    tablet.shows("was away for long, are not shown here").await;
    bob.types("to-both\r");
    ada.shows("to-both").await;
    tablet.shows("Tab opens").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_lock_is_set_in_the_chat_and_asked_when_the_name_is_registered_again() {
    let desk = Desk::new();
    let node = desk.open("natter serve");
    node.shows("node ready").await;
    let mut ada = desk.chat("phone", "--as ada");
    register(&mut ada, "ada", &[&node]).await;
    ada.types("/lock\r");
    ada.shows("You have no registration lock").await;
    ada.types("/lock s3cret\r");
    ada.shows("The registration lock is set.").await;
    ada.types("/lock mine\r");
    ada.shows("There is a registration lock already").await;
    ada.types("/lock s3cret2 s3cret\r");
    ada.shows("The registration lock is set.").await;
    ada.types("/unlock s3cret\r");
    ada.shows("That is not the registration lock").await;

    let mut again = desk.chat("elsewhere", "--as ada");
    proves(&mut again, "ada", &node).await;
    again.shows("The account has a registration lock: ").await;
    again.types("guess\r");
    again.shows("That registration lock is wrong.").await;
    again.types("s3cret2\r");
    again.shows("connected").await;
    ada.shows("this device was unlinked, or its account").await;
    again.types("/unlock s3cret2\r");
    again.shows("The registration lock is gone.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_account_was_taken_over_while_it_was_away_is_told_in_a_sentence() {
    let desk = Desk::new();
    let node = desk.open("natter serve");
    node.shows("node ready").await;
    let mut old = desk.chat("phone", "--as ada");
    register(&mut old, "ada", &[&node]).await;
    drop(old);
    let mut new = desk.chat("elsewhere", "--as ada");
    proves(&mut new, "ada", &node).await;
    new.shows("connected").await;
    let old = desk.chat("phone", "--as ada");
    old.shows("this device was unlinked, or its account was").await;
    old.shows("chat --as ada --register-again").await;
}
