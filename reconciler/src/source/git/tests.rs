use std::path::PathBuf;

use git2::Signature;

use super::*;

/// A bare repository that tests commit into without a checkout.
pub(crate) struct Repo {
    pub(crate) folder: tempfile::TempDir,
    git: Repository,
}

impl Repo {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let git = Repository::init_bare(folder.path()).unwrap();
        git.set_head("refs/heads/main").unwrap();
        Self { folder, git }
    }

    /// Commits entries `(path, mode, content)` to main, on `parent`.
    pub(crate) fn commit_entries(&self, entries: &[(&str, i32, &[u8])], parent: Option<Oid>) -> Oid {
        let mut index = git2::Index::new().unwrap();
        for (path, mode, content) in entries {
            let id = if *mode == 0o160_000 {
                Oid::from_str("0123456789012345678901234567890123456789").unwrap()
            } else {
                self.git.blob(content).unwrap()
            };
            let entry = git2::IndexEntry {
                ctime: git2::IndexTime::new(0, 0),
                mtime: git2::IndexTime::new(0, 0),
                dev: 0,
                ino: 0,
                mode: *mode as u32,
                uid: 0,
                gid: 0,
                file_size: 0,
                id,
                flags: 0,
                flags_extended: 0,
                path: path.as_bytes().to_vec(),
            };
            index.add(&entry).unwrap();
        }
        let tree = self
            .git
            .find_tree(index.write_tree_to(&self.git).unwrap())
            .unwrap();
        let who = Signature::now("t", "t@example.org").unwrap();
        let parents: Vec<_> = parent
            .iter()
            .map(|id| self.git.find_commit(*id).unwrap())
            .collect();
        let id = self
            .git
            .commit(None, &who, &who, "m", &tree, &parents.iter().collect::<Vec<_>>())
            .unwrap();
        self.git.reference("refs/heads/main", id, true, "test").unwrap();
        id
    }

    pub(crate) fn commit(&self, files: &[(&str, &str)], parent: Option<Oid>) -> Oid {
        let entries: Vec<_> = files
            .iter()
            .map(|(path, text)| (*path, 0o100_644, text.as_bytes()))
            .collect();
        self.commit_entries(&entries, parent)
    }

    fn source(&self, reference: Reference) -> GitSource {
        let path = self.folder.path().to_str().unwrap().to_owned();
        GitSource::open(
            &path,
            reference,
            Access::default(),
            &PathBuf::from("/nonexistent"),
            Limits::default(),
        )
        .unwrap()
    }
}

fn refusal(repo: &Repo) -> String {
    let snapshot = repo.source(Reference::Head).fetch_blocking().unwrap().snapshot;
    snapshot.tree.files("").unwrap_err().to_string()
}

#[test]
fn a_commit_is_read_without_a_checkout() {
    let repo = Repo::new();
    let id = repo.commit(&[("clusters/prod/mesh.yaml", "a: 1\n"), ("other/x", "y")], None);
    let fetched = repo
        .source(Reference::Branch("main".into()))
        .fetch_blocking()
        .unwrap();
    assert_eq!(fetched.snapshot.revision.to_string(), format!("main@sha1:{id}"));
    assert_eq!(
        fetched
            .snapshot
            .tree
            .files("clusters")
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["clusters/prod/mesh.yaml"]
    );
    assert_eq!(
        fetched
            .snapshot
            .tree
            .files("clusters/prod/mesh.yaml")
            .unwrap()
            .len(),
        1
    );
    assert!(matches!(
        fetched.snapshot.tree.files("nope"),
        Err(SourceError::NotFound { .. })
    ));
    assert!(matches!(
        fetched.snapshot.tree.files("other/x/y"),
        Err(SourceError::NotFound { .. })
    ));
}

#[test]
fn branches_tags_commits_and_heads_are_followed() {
    let repo = Repo::new();
    let first = repo.commit(&[("a", "1")], None);
    repo.git
        .tag(
            "v1",
            &repo.git.find_object(first, None).unwrap(),
            &Signature::now("t", "t@t").unwrap(),
            "one",
            false,
        )
        .unwrap();
    let second = repo.commit(&[("a", "2")], Some(first));
    let at = |reference| {
        repo.source(reference)
            .fetch_blocking()
            .map(|f| f.snapshot.revision.to_string())
            .map_err(|e| e.to_string())
    };
    assert_eq!(at(Reference::Head).unwrap(), format!("main@sha1:{second}"));
    assert_eq!(at(Reference::any("v1")).unwrap(), format!("v1@sha1:{first}"));
    assert_eq!(
        at(Reference::Commit(first.to_string())).unwrap(),
        format!("sha1:{first}")
    );
    assert!(
        at(Reference::Branch("gone".into()))
            .unwrap_err()
            .ends_with("has no branch `gone`")
    );
}

#[test]
fn a_forced_push_is_followed_and_told() {
    let repo = Repo::new();
    let first = repo.commit(&[("a", "1")], None);
    let mut source = repo.source(Reference::Head);
    assert!(source.fetch_blocking().unwrap().rewritten_from.is_none());
    assert!(!source.fetch_blocking().unwrap().changed);
    let second = repo.commit(&[("a", "2")], Some(first));
    assert!(source.fetch_blocking().unwrap().rewritten_from.is_none());
    repo.commit(&[("a", "3")], Some(first));
    let fetched = source.fetch_blocking().unwrap();
    assert_eq!(fetched.rewritten_from, Some(second.to_string()));
    assert!(fetched.changed);
}

#[test]
fn symlinks_and_submodules_are_refused() {
    let repo = Repo::new();
    repo.commit_entries(&[("p/link", 0o120_000, b"/etc/passwd")], None);
    assert_eq!(
        refusal(&repo),
        "p/link: symlinks are not followed; put the file itself there"
    );
    repo.commit_entries(&[("p/module", 0o160_000, b"")], None);
    assert_eq!(
        refusal(&repo),
        "p/module: submodules are not fetched; put the files themselves there"
    );
}

#[test]
fn a_hostile_tree_cannot_climb() {
    let repo = Repo::new();
    let blob = repo.git.blob(b"x").unwrap();
    // libgit2's own builder refuses such a name, so the tree object is written by hand.
    let mut raw = b"100644 ..\0".to_vec();
    raw.extend_from_slice(blob.as_bytes());
    let odb = repo.git.odb().unwrap();
    let tree = odb.write(ObjectType::Tree, &raw).unwrap();
    let who = Signature::now("t", "t@t").unwrap();
    if let Ok(tree) = repo.git.find_tree(tree) {
        let id = repo.git.commit(None, &who, &who, "m", &tree, &[]).unwrap();
        repo.git.reference("refs/heads/main", id, true, "test").unwrap();
        assert!(refusal(&repo).contains("is not allowed"));
    }
    let tree = tests_tree(&repo);
    assert!(matches!(
        tree.files("a/../../etc"),
        Err(SourceError::Refused { .. })
    ));
}

fn tests_tree(repo: &Repo) -> Arc<dyn Tree> {
    repo.commit(&[("a", "1")], None);
    repo.source(Reference::Head)
        .fetch_blocking()
        .unwrap()
        .snapshot
        .tree
}

#[test]
fn oversized_trees_are_refused() {
    let repo = Repo::new();
    repo.commit_entries(&[("big", 0o100_644, &vec![b'x'; (1 << 20) + 1])], None);
    assert_eq!(
        refusal(&repo),
        "big: the file has 1048577 bytes; at most 1048576 are read"
    );
    let deep = format!("{}x", "d/".repeat(17));
    repo.commit(&[(deep.as_str(), "1")], None);
    assert!(
        refusal(&repo).contains("nested deeper than 16"),
        "{}",
        refusal(&repo)
    );
    let names: Vec<_> = (0..10_001).map(|i| format!("f{i}")).collect();
    repo.commit(
        &names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>(),
        None,
    );
    assert!(refusal(&repo).contains("more than 10000 files"));
}

#[test]
fn locations_that_cannot_be_fetched_say_so() {
    for location in [
        "ssh://git@example.org/x",
        "git@example.org:x.git",
        "git://example.org/x",
        "s3://b",
    ] {
        let opened = GitSource::open(
            location,
            Reference::Head,
            Access::default(),
            Path::new("/tmp"),
            Limits::default(),
        );
        assert!(matches!(opened, Err(SourceError::Location { .. })), "{location}");
    }
    assert_eq!(
        redact("https://user:secret@example.org/x.git"),
        "https://example.org/x.git"
    );
}

mod http;
