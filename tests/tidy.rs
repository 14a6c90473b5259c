//! House rules that no compiler knows: arrows between crates, file lengths, heads of files, codes,
//! engine names, reasons of dependencies. Each failure says what to do instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests end by panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who may know whom: the folder of a crate, its name, and the crates of the house that it may depend on.
const ARROWS: &[(&str, &str, &[&str])] = &[
    ("proto", "proto", &[]),
    ("supervision", "supervision", &[]),
    ("storage", "storage", &["proto"]),
    ("cluster/links", "links", &["proto", "supervision"]),
    ("cluster/consensus", "consensus", &["proto", "storage", "supervision", "links"]),
    ("cluster/sessions", "sessions", &["proto", "storage", "supervision", "links"]),
    (
        "cluster/membership",
        "membership",
        &["proto", "storage", "supervision", "links", "consensus"],
    ),
    (
        "actors",
        "actors",
        &["proto", "storage", "supervision", "links", "consensus", "sessions", "membership"],
    ),
    (
        "node",
        "node",
        &[
            "proto",
            "storage",
            "supervision",
            "links",
            "consensus",
            "sessions",
            "membership",
            "actors",
        ],
    ),
    ("natter", "natter", &["proto", "node", "natter-cli", "natter-sdk"]),
    ("clients/sdk", "natter-sdk", &["proto"]),
    ("clients/cli", "natter-cli", &["proto", "natter-sdk"]),
    (
        "simulation",
        "simulation",
        &["proto", "storage", "links", "consensus", "sessions", "membership", "actors"],
    ),
    ("tests", "tests", &["proto", "supervision", "natter-sdk", "actors", "node", "natter"]),
    ("tests/skip", "skip", &[]),
    ("benches", "benches", &["proto", "natter-sdk", "storage", "actors"]),
];

const FILE_LINES_MAX: usize = 500;

/// Files of a folder, its door not counted.
const FOLDER_FILES_MAX: usize = 40;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file of the house, its path from the root and its text.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ARROWS.iter().map(|(folder, ..)| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !["target", "node_modules", "corpus"].contains(&name.as_str()) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let short = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.insert(short, fs::read_to_string(path).unwrap());
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// Whether a file holds only tests or benchmarks, by where it lies.
fn only_tests(path: &str) -> bool {
    path.starts_with("tests/")
        || path.starts_with("simulation/")
        || path.contains("/tests/")
        || path.contains("_tests/")
        || path.ends_with("tests.rs")
        || path == "benches/micro.rs"
        || path == "cluster/links/examples/pair.rs" // A measurement.
}

/// The text of a file without its test module and without single items that are for tests.
fn product(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let mut product = String::new();
    let mut until: Option<String> = None;
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if let Some(end) = &until {
            if line.trim_end() == end {
                until = None;
            }
        } else if line.trim() == "#[cfg(test)]" {
            until = Some(format!("{indent}}}"));
        } else {
            product.push_str(line);
            product.push('\n');
        }
    }
    product
}

/// Lines of code, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

fn none_of(problems: &[String], cure: &str) {
    assert!(problems.is_empty(), "{}\n=> {cure}", problems.join("\n"));
}

/// Names under the `[dependencies]` sections of a manifest; dev-dependencies as well if asked.
fn dependencies(manifest: &str, with_dev: bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]") && (with_dev || !line.contains("dev-"));
        } else if inside && let Some((name, _)) = line.split_once(['.', '=', ' ']) {
            names.insert(name.trim().to_owned());
        }
    }
    names
}

#[test]
fn crates_know_only_whom_the_design_lets_them_know() {
    let house: BTreeSet<&str> = ARROWS.iter().map(|(_, name, _)| *name).collect();
    let mut problems = Vec::new();
    for (folder, name, may) in ARROWS {
        for known in dependencies(&read(&format!("{folder}/Cargo.toml")), false) {
            if house.contains(known.as_str()) && !may.contains(&known.as_str()) {
                problems.push(format!("{name} knows {known}"));
            }
        }
    }
    none_of(&problems, "turn the arrow: pass what is needed down as plain data, or move the code");
}

/// The modules below `src` of a crate, by path, with the text of each: without tests.
fn modules(folder: &str) -> BTreeMap<Vec<String>, String> {
    let src = format!("{folder}/src/");
    let mut modules = BTreeMap::new();
    for (path, text) in sources() {
        let Some(inside) = path.strip_prefix(&src).filter(|_| !only_tests(&path)) else { continue };
        let mut parts: Vec<String> =
            inside.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if ["mod", "lib", "main"].contains(&parts.last().unwrap().as_str()) {
            parts.pop();
        }
        modules.insert(parts, code_lines(&product(&text)).collect::<Vec<_>>().join("\n"));
    }
    modules
}

/// The paths that a text names by `crate::` or `super::`, as seen from the module `at`.
fn named(text: &str, at: &[String]) -> BTreeSet<Vec<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = BTreeSet::new();
    for word in ["crate::", "super::"] {
        for (begin, _) in text.match_indices(word) {
            if text[..begin].ends_with(|c| is_name(c) || c == ':') {
                continue;
            }
            let (mut rest, mut base) = (&text[begin..], at.to_vec());
            if let Some(below) = rest.strip_prefix("crate::") {
                (rest, base) = (below, Vec::new());
            }
            while let Some(below) = rest.strip_prefix("super::") {
                base.pop();
                rest = below;
            }
            while let Some((name, below)) =
                rest.split_once("::").filter(|(n, _)| n.chars().all(is_name))
            {
                base.push(name.to_owned());
                rest = below;
            }
            let list = rest.strip_prefix('{').and_then(|list| list.split_once("};"));
            let list = list.map_or_else(
                || rest.split(|c| !is_name(c)).take(1).collect::<Vec<_>>(),
                |(list, _)| list.split([',', '{', '}']).map(str::trim).collect(),
            );
            for item in list {
                let names = item.split("::").map(str::to_owned);
                paths.insert(base.iter().cloned().chain(names).collect());
            }
        }
    }
    paths
}

/// What lies in a folder: which of it knows which, from the names of all that is below.
fn knows(
    modules: &BTreeMap<Vec<String>, String>,
    folder: &[String],
) -> BTreeMap<String, BTreeSet<String>> {
    let mut knows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let inside = |path: &[String]| path.strip_prefix(folder).and_then(<[String]>::first).cloned();
    for (at, text) in modules {
        let Some(here) = inside(at) else { continue };
        for mut path in named(text, at) {
            while !modules.contains_key(&path) && path.pop().is_some() {}
            if let Some(there) = inside(&path).filter(|there| *there != here) {
                knows.entry(here.clone()).or_default().insert(there);
            }
        }
    }
    knows
}

/// All that `from` knows, by itself or through others.
fn reached<'a>(knows: &'a BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<&'a str> {
    let (mut reached, mut waiting) = (BTreeSet::new(), vec![from]);
    while let Some(next) = waiting.pop() {
        for known in knows.get(next).into_iter().flatten() {
            if reached.insert(known.as_str()) {
                waiting.push(known);
            }
        }
    }
    reached
}

#[test]
fn files_of_different_folders_do_not_import_each_other_in_circles() {
    let mut problems = Vec::new();
    for (of, name, _) in ARROWS.iter().filter(|(of, ..)| *of != "simulation" && *of != "tests") {
        let modules = modules(of);
        let folders: BTreeSet<&[String]> =
            modules.keys().flat_map(|path| (0..path.len()).map(|n| &path[..n])).collect();
        for folder in &folders {
            let knows = knows(&modules, folder);
            for one in knows.keys() {
                let is_folder =
                    folders.contains([*folder, std::slice::from_ref(one)].concat().as_slice());
                let circle = reached(&knows, one);
                if is_folder && circle.contains(one.as_str()) {
                    problems
                        .push(format!("{name}: {}/{one}, by way of {circle:?}", folder.join("/")));
                }
            }
        }
    }
    none_of(&problems, "let the lower one define a trait that the upper one implements");
}

#[test]
fn a_folder_with_many_files_has_wings() {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for (path, _) in
        sources().iter().filter(|(path, _)| path.contains("/src/") && !only_tests(path))
    {
        let (folder, file) = path.rsplit_once('/').unwrap();
        if !["mod.rs", "lib.rs", "main.rs"].contains(&file) {
            *count.entry(folder.to_owned()).or_default() += 1;
        }
    }
    let large = count.into_iter().filter(|(_, files)| *files > FOLDER_FILES_MAX);
    let problems: Vec<String> =
        large.map(|(folder, files)| format!("{folder}: {files} files")).collect();
    none_of(&problems, "give it wings: subfolders named for what they hold");
}

#[test]
fn every_member_of_the_workspace_has_its_arrows() {
    let manifest = read("Cargo.toml");
    let (_, members) = manifest.split_once("members = [").unwrap();
    let members = members.split_once(']').unwrap().0;
    let members: BTreeSet<&str> = members.split('"').skip(1).step_by(2).collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(folder, ..)| *folder).collect();
    assert_eq!(members, known, "add the crate to ARROWS in tests/tidy.rs and to ARCHITECTURE.md");
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let long = sources().into_iter().map(|(path, text)| (path, text.lines().count()));
    let long = long.filter(|(_, lines)| *lines > FILE_LINES_MAX);
    let problems: Vec<String> =
        long.map(|(path, lines)| format!("{path}: {lines} lines")).collect();
    none_of(&problems, "split it by what it decides; move its tests to a file of their own");
}

#[test]
fn every_file_says_what_it_is() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    let problems: Vec<String> = silent.map(|(path, _)| path).collect();
    none_of(&problems, "begin the file with //! what it is, who runs it, its invariants");
}

#[test]
fn every_workspace_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let (_, section) = manifest.split_once("[workspace.dependencies]").unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut problems = Vec::new();
    for line in section.lines().filter(|line| line.contains('=') && !line.starts_with('#')) {
        let reason = line.rsplit_once(" # ").map_or("", |(_, reason)| reason);
        if !line.contains("path = ") && reason.len() < 5 {
            problems.push(line.to_owned());
        }
    }
    none_of(&problems, "write `# reason` behind the dependency, or do without it");
}

#[test]
fn members_take_versions_from_the_workspace() {
    let mut problems = Vec::new();
    for (folder, name, _) in ARROWS {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        for line in manifest.lines().filter(|line| line.contains("version = \"")) {
            problems.push(format!("{name}: {line}"));
        }
    }
    none_of(&problems, "name the version once, with its reason, in the root Cargo.toml");
}

/// Files, other than those below `home`, whose code holds one of `words`.
fn outside(home: &[&str], words: &[&str]) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        if path == "tests/tidy.rs" || home.iter().any(|home| path.starts_with(home)) {
            continue;
        }
        for word in words {
            if code_lines(&text).any(|line| names(line, word)) {
                problems.push(format!("{path}: {word}"));
            }
        }
    }
    problems
}

/// Whether `word` stands in `line` as a name of its own: `engine::sled::` names a module of ours.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
    })
}

#[test]
fn only_the_engines_name_an_engine() {
    let problems = outside(&["storage/src/engine/"], &["sled::", "fjall::"]);
    none_of(&problems, "go through the engine trait in storage/src/engine");
}

#[test]
fn only_supervision_and_links_name_ractor() {
    let words = ["ractor::", "use ractor", "ractor_cluster::", "use ractor_cluster"];
    let mut problems = outside(&["supervision/", "cluster/links/"], &words);
    let may = ["supervision", "links"];
    for (folder, name, _) in ARROWS.iter().filter(|(_, name, _)| !may.contains(name)) {
        if dependencies(&read(&format!("{folder}/Cargo.toml")), true).contains("ractor") {
            problems.push(format!("{name} depends on ractor"));
        }
    }
    none_of(&problems, "use what supervision offers, or offer more there; ractor changes often");
}

#[test]
fn nothing_is_left_to_do_and_nothing_panics_outside_tests() {
    let words = ["todo!(", "unimplemented!(", "dbg!(", ".unwrap()", ".expect(", "panic!("];
    let mut problems = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !only_tests(path)) {
        for line in code_lines(&product(text)) {
            let word = words.iter().find(|word| line.contains(**word));
            problems.extend(word.map(|word| format!("{path}: {word} in `{line}`")));
        }
    }
    none_of(&problems, "return an error that says what happened; finish it or leave it out");
}

#[test]
fn no_test_is_switched_off() {
    let mut problems = outside(&["tests/tidy.rs"], &["#[ignore"]);
    problems.sort();
    none_of(&problems, "assert today's wrong answer and say why it is wrong");
}

#[test]
fn tests_are_skipped_by_one_function_which_ci_forbids() {
    let mut problems = outside(&["tests/tidy.rs", "tests/skip/"], &["\"skipped: ", "\"skipped {"]);
    if !read(".ci/run").contains("NATTER_NO_SKIP=") {
        problems.push(".ci/run does not set NATTER_NO_SKIP".to_owned());
    }
    none_of(&problems, "call skip::skipped with the reason");
}

#[test]
fn the_codes_are_unique_and_in_the_protocol() {
    let page = read("proto/PROTOCOL.md");
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    for code in proto::Code::ALL {
        if !seen.insert(code.number()) {
            problems.push(format!("{} appears twice", code.number()));
        }
        if !page.contains(&format!("| {} | `{}` |", code.number(), code.name())) {
            problems.push(format!("{} {} is not in PROTOCOL.md", code.number(), code.name()));
        }
    }
    none_of(&problems, "give the code a number of its own and a row in proto/PROTOCOL.md");
}

#[test]
fn panics_unwind_in_every_profile() {
    let aborting =
        read("Cargo.toml").lines().any(|line| line.replace(' ', "") == "panic=\"abort\"");
    assert!(!aborting, "supervision needs unwinding: remove panic = \"abort\" from the profile");
}

/// The rows of the first table after `title` of a page: name and value, without their marks.
fn rows(page: &str, title: &str) -> BTreeMap<String, String> {
    let page = read(page);
    let (_, section) = page.split_once(title).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let plain = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.filter_map(|line| {
        let mut cells = line.split('|').skip(1);
        Some((plain(cells.next()?), plain(cells.next()?)))
    });
    rows.collect()
}

/// Every setting as the printed defaults have it: `section.key` and the value.
fn default_settings() -> BTreeMap<String, String> {
    let (mut section, mut found) = (String::new(), BTreeMap::new());
    for line in read("deploy/node.toml").lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once(" = ") {
            found.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    found
}

#[test]
fn the_limits_in_the_security_page_are_the_defaults() {
    let told = rows("SECURITY.md", "\n## Limits");
    assert!(told.len() > 10, "the table was not found");
    let mut known = default_settings();
    known.extend(rows("proto/PROTOCOL.md", "\n## Limits"));
    let mut problems = Vec::new();
    for (name, value) in told {
        let default = known.get(&name).map_or("no such limit", String::as_str);
        if default != value {
            problems.push(format!("{name}: {value}, but it is {default}"));
        }
    }
    none_of(&problems, "change the number in SECURITY.md, and the estimate that stands behind it");
}
