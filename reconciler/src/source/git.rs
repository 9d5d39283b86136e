//! A Git repository as a source: a persistent bare clone that is fetched incrementally, and trees read straight from its
//! objects. Nothing is ever checked out.
//!
//! A repository on this machine is opened where it is. One behind http(s) is fetched through [`super::bridge`], which
//! does what libgit2 is built without: TLS by rustls, tokens, timeouts.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use git2::{Direction, ErrorClass, ErrorCode, FetchOptions, ObjectType, Oid, Repository};

use super::{
    Files, Limits, Revision, Snapshot, SourceError, Tree,
    bridge::Bridge,
    clean_path,
    limits::{Budget, refused},
};

/// What of the repository is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The branch that the repository's HEAD names.
    Head,
    Branch(String),
    Tag(String),
    Commit(String),
    /// A branch, else a tag, else a commit.
    Any(String),
}

impl Reference {
    pub fn any(name: &str) -> Self {
        if name.is_empty() || name == "HEAD" {
            Self::Head
        } else {
            Self::Any(name.to_owned())
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Head => "HEAD: it has no commit".to_owned(),
            Self::Branch(name) => format!("branch `{name}`"),
            Self::Tag(name) => format!("tag `{name}`"),
            Self::Commit(id) => format!("commit {id}"),
            Self::Any(name) => format!("branch, tag or commit `{name}`"),
        }
    }

    /// The names to look for at the server, best first.
    fn candidates(&self) -> Vec<String> {
        let branch = |name: &String| format!("refs/heads/{name}");
        let tag = |name: &String| format!("refs/tags/{name}");
        match self {
            Self::Head => vec!["HEAD".to_owned()],
            Self::Branch(name) => vec![branch(name)],
            Self::Tag(name) => vec![tag(name)],
            Self::Commit(_) => Vec::new(),
            Self::Any(name) => vec![branch(name), tag(name)],
        }
    }

    fn commit_id(&self) -> Option<Oid> {
        match self {
            Self::Commit(id) | Self::Any(id) if id.len() == 40 => Oid::from_str(id).ok(),
            _ => None,
        }
    }
}

/// How to be let in.
#[derive(Clone, Default)]
pub struct Access {
    pub credentials: Option<Credentials>,
    /// Trust these CAs (PEM) as well as the system's.
    pub ca_pem: Option<String>,
}

/// What is sent with each request.
#[derive(Clone)]
pub enum Credentials {
    Basic { username: String, password: String },
    Bearer(String),
}

/// What one fetch found.
#[derive(Debug)]
pub struct Fetched {
    pub snapshot: Snapshot,
    /// Whether this is another commit than at the last fetch.
    pub changed: bool,
    /// The commit that was followed before, when the new one does not descend from it: somebody pushed by force.
    pub rewritten_from: Option<String>,
}

/// A repository that is followed.
pub struct GitSource {
    /// The URL as people wrote it, without any password.
    url: String,
    reference: Reference,
    place: Place,
    limits: Limits,
    last: Option<(Oid, Snapshot)>,
}

enum Place {
    Local(PathBuf),
    Remote { clone: PathBuf, bridge: Bridge },
}

/// Whether a location is a URL rather than a path.
pub fn is_url(location: &str) -> bool {
    location.split_once("://").is_some_and(|(scheme, _)| {
        scheme
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || char == '+')
    }) || (location.contains('@') && location.contains(':') && !location.starts_with('/'))
}

/// Whether a folder is a bare repository, whose files are not on disk.
pub fn is_bare(folder: &Path) -> bool {
    folder.join("HEAD").is_file() && folder.join("objects").is_dir()
}

impl GitSource {
    /// Opens a location: a path, `file://`, `http://` or `https://`.
    ///
    /// # Errors
    /// A location of another kind, or a cache folder that cannot be made.
    pub fn open(
        location: &str,
        reference: Reference,
        access: Access,
        cache_dir: &Path,
        limits: Limits,
    ) -> Result<Self, SourceError> {
        let wrong = |reason: &str| SourceError::Location {
            location: redact(location),
            reason: reason.to_owned(),
        };
        let place = match location.split_once("://") {
            Some(("http" | "https", _)) => {
                let bridge = Bridge::start(location, &access)?;
                // One clone for each URL, whoever asks for it; credentials are no part of it.
                let name = crate::object::digest(redact(location).as_bytes());
                let clone = cache_dir.join("git").join(format!("{}.git", &name[..32]));
                Place::Remote { clone, bridge }
            }
            Some(("file", path)) => Place::Local(path.into()),
            Some(("ssh" | "git" | "git+ssh", _)) => {
                return Err(wrong(
                    "only http, https and local paths are supported; use the repository's https URL",
                ));
            }
            Some((scheme, _)) => return Err(wrong(&format!("the scheme `{scheme}` is not known"))),
            None if is_url(location) => {
                return Err(wrong("ssh is not supported; use the repository's https URL"));
            }
            None => Place::Local(location.into()),
        };
        Ok(Self {
            url: redact(location),
            reference,
            place,
            limits,
            last: None,
        })
    }

    /// The URL without password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks for the newest commit, and fetches it when it is new. Blocks; call from a blocking thread.
    ///
    /// # Errors
    /// As [`SourceError`] says; the last snapshot stays valid.
    pub fn fetch_blocking(&mut self) -> Result<Fetched, SourceError> {
        let (repository, commit, name) = match &self.place {
            Place::Local(path) => self.local(path)?,
            Place::Remote { clone, bridge } => self.remote(clone, bridge)?,
        };
        if let Some((last, snapshot)) = self.last.as_ref().filter(|(last, _)| *last == commit) {
            debug_assert_eq!(*last, commit);
            return Ok(Fetched {
                snapshot: snapshot.clone(),
                changed: false,
                rewritten_from: None,
            });
        }
        let rewritten_from = self.last.as_ref().map(|(last, _)| *last).filter(|last| {
            // Only a branch is expected to grow; a tag or HEAD elsewhere may point anywhere.
            !repository.graph_descendant_of(commit, *last).unwrap_or(false)
        });
        let revision = Revision::commit(&name, &commit.to_string());
        let tree = GitTree {
            repository: Mutex::new(repository),
            commit,
            revision: revision.clone(),
            limits: self.limits,
        };
        let snapshot = Snapshot {
            revision,
            tree: Arc::new(tree),
        };
        self.last = Some((commit, snapshot.clone()));
        Ok(Fetched {
            snapshot,
            changed: true,
            rewritten_from: rewritten_from.map(|id| id.to_string()),
        })
    }

    fn local(&self, path: &Path) -> Result<(Repository, Oid, String), SourceError> {
        let unreadable = |source| SourceError::Repository {
            url: self.url.clone(),
            source,
        };
        let repository = Repository::open(path).map_err(|source| match source.code() {
            ErrorCode::NotFound => SourceError::Unreachable {
                url: self.url.clone(),
                source,
            },
            _ => unreadable(source),
        })?;
        let missing = || SourceError::NoReference {
            url: self.url.clone(),
            reference: self.reference.describe(),
        };
        for name in self.reference.candidates() {
            let found = repository.find_reference(&name).ok().map(|reference| {
                let reference = reference.resolve()?;
                let shown = reference.shorthand().unwrap_or(&name).to_owned();
                Ok::<_, git2::Error>((reference.peel_to_commit()?.id(), shown))
            });
            if let Some(found) = found {
                let (commit, shown) = found.map_err(|_| missing())?;
                return Ok((repository, commit, shown));
            }
        }
        let wanted = match &self.reference {
            Reference::Commit(id) | Reference::Any(id) => id.as_str(),
            _ => return Err(missing()),
        };
        // A short id, or `main~1`: only a person at a terminal writes that.
        let commit = repository
            .revparse_single(wanted)
            .and_then(|object| object.peel_to_commit())
            .map_err(|_| missing())?
            .id();
        Ok((repository, commit, String::new()))
    }

    fn remote(&self, clone: &Path, bridge: &Bridge) -> Result<(Repository, Oid, String), SourceError> {
        let failed = |source: git2::Error| self.fetch_error(source, bridge);
        let repository = open_clone(clone).map_err(|source| SourceError::Repository {
            url: self.url.clone(),
            source,
        })?;
        let found;
        {
            let mut remote = repository.remote_anonymous(bridge.url()).map_err(failed)?;
            bridge.begin();
            let mut connection = remote
                .connect_auth(Direction::Fetch, None, None)
                .map_err(failed)?;
            let listed = connection.list().map_err(failed)?;
            // git2 panics on a name that is not UTF-8, and the server chooses the names.
            let heads: Vec<(String, Oid, Option<String>)> =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    listed
                        .iter()
                        .map(|head| {
                            (
                                head.name().to_owned(),
                                head.oid(),
                                head.symref_target().map(str::to_owned),
                            )
                        })
                        .collect()
                }))
                .map_err(|_| {
                    failed(git2::Error::from_str(
                        "the server lists a reference whose name is not UTF-8",
                    ))
                })?;
            found = self.pick(&heads)?;
            let have = repository.find_commit(found.commit).is_ok();
            if !have || found.name.is_empty() {
                let mut options = FetchOptions::new();
                options.download_tags(git2::AutotagOption::None);
                let specs: Vec<String> = match &found.fetch {
                    Some(name) => vec![format!(
                        "+{name}:refs/heddle/{}",
                        name.trim_start_matches("refs/")
                    )],
                    // A commit that no branch names: only what the server's branches and tags reach can be had.
                    None => vec![
                        "+refs/heads/*:refs/heddle/heads/*".into(),
                        "+refs/tags/*:refs/heddle/tags/*".into(),
                    ],
                };
                if !have {
                    connection
                        .remote()
                        .fetch(&specs, Some(&mut options), None)
                        .map_err(failed)?;
                }
            }
        }
        // An annotated tag names a tag object; its commit is what counts.
        let commit = repository
            .find_object(found.commit, None)
            .and_then(|object| object.peel_to_commit())
            .map_err(|_| SourceError::NoReference {
                url: self.url.clone(),
                reference: self.reference.describe(),
            })?
            .id();
        Ok((repository, commit, found.name))
    }

    fn pick(&self, heads: &[(String, Oid, Option<String>)]) -> Result<Found, SourceError> {
        for candidate in self.reference.candidates() {
            let peeled = format!("{candidate}^{{}}");
            let head = heads.iter().find(|(name, ..)| *name == candidate);
            if let Some((name, oid, target)) = head {
                let commit = heads
                    .iter()
                    .find(|(name, ..)| *name == peeled)
                    .map_or(*oid, |(_, oid, _)| *oid);
                // HEAD is shown, and fetched, as the branch that it stands for.
                let branch = target.clone().or_else(|| {
                    let same = |(name, other, _): &&(String, Oid, Option<String>)| {
                        name.starts_with("refs/heads/") && *other == commit
                    };
                    if name == "HEAD" {
                        heads.iter().find(same).map(|(name, ..)| name.clone())
                    } else {
                        None
                    }
                });
                let full = branch.unwrap_or_else(|| name.clone());
                let shown = full
                    .trim_start_matches("refs/heads/")
                    .trim_start_matches("refs/tags/")
                    .to_owned();
                return Ok(Found {
                    commit,
                    name: shown,
                    fetch: Some(full),
                });
            }
        }
        let commit = self
            .reference
            .commit_id()
            .ok_or_else(|| SourceError::NoReference {
                url: self.url.clone(),
                reference: self.reference.describe(),
            })?;
        Ok(Found {
            commit,
            name: String::new(),
            fetch: None,
        })
    }

    /// The bridge knows better than libgit2 why a request failed.
    fn fetch_error(&self, source: git2::Error, bridge: &Bridge) -> SourceError {
        let url = self.url.clone();
        let failure = bridge.failure();
        let source = match &failure {
            Some(failure) => git2::Error::new(source.code(), source.class(), &failure.message),
            None => source,
        };
        let unauthorized = failure
            .as_ref()
            .is_some_and(|failure| matches!(failure.status, Some(401 | 403)))
            || source.code() == ErrorCode::Auth;
        if unauthorized {
            SourceError::Unauthorized { url, source }
        } else if failure.is_some() || matches!(source.class(), ErrorClass::Net | ErrorClass::Http) {
            SourceError::Unreachable { url, source }
        } else {
            SourceError::Repository { url, source }
        }
    }
}

struct Found {
    commit: Oid,
    name: String,
    fetch: Option<String>,
}

/// Opens the clone, or makes it; one that is broken (a crash in the middle of `init`) is made anew.
fn open_clone(clone: &Path) -> Result<Repository, git2::Error> {
    match Repository::open_bare(clone) {
        Ok(repository) => Ok(repository),
        Err(_) => {
            // Nothing but what can be fetched again is lost.
            let _ = std::fs::remove_dir_all(clone);
            std::fs::create_dir_all(clone)
                .map_err(|error| git2::Error::from_str(&format!("{}: {error}", clone.display())))?;
            Repository::init_bare(clone)
        }
    }
}

/// A URL without its user and password.
pub fn redact(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest
                .split_once('/')
                .map_or((rest, ""), |(host, path)| (host, path));
            match host.rsplit_once('@') {
                Some((_, host)) => format!("{scheme}://{host}/{path}"),
                None => url.to_owned(),
            }
        }
        None => url.to_owned(),
    }
}

/// The files of one commit.
struct GitTree {
    // libgit2's handles may move between threads but not be shared.
    repository: Mutex<Repository>,
    commit: Oid,
    revision: Revision,
    limits: Limits,
}

impl Tree for GitTree {
    fn files(&self, path: &str) -> Result<Files, SourceError> {
        let path = clean_path(path)?;
        let repository = self.repository.lock().unwrap_or_else(PoisonError::into_inner);
        let broken = |source| SourceError::Repository {
            url: self.revision.to_string(),
            source,
        };
        let root = repository
            .find_commit(self.commit)
            .and_then(|commit| commit.tree())
            .map_err(broken)?;
        let mut files = Files::new();
        let mut budget = Budget::new(self.limits);
        let mut at = (root.id(), 0o040_000);
        let mut seen = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            check_mode(&seen, at.1)?;
            let not_found = || SourceError::NotFound {
                path: path.clone(),
                revision: self.revision.to_string(),
            };
            let tree = repository.find_tree(at.0).map_err(|_| not_found())?;
            let entry = tree.get_name(part).ok_or_else(not_found)?;
            at = (entry.id(), entry.filemode());
            seen = if seen.is_empty() {
                part.to_owned()
            } else {
                format!("{seen}/{part}")
            };
        }
        self.read(&repository, &path, at, 0, &mut budget, &mut files)?;
        Ok(files)
    }
}

/// Git's modes of what is not a plain file or folder.
fn check_mode(path: &str, mode: i32) -> Result<(), SourceError> {
    match mode {
        0o120_000 => Err(refused(
            path,
            "symlinks are not followed; put the file itself there",
        )),
        0o160_000 => Err(refused(
            path,
            "submodules are not fetched; put the files themselves there",
        )),
        _ => Ok(()),
    }
}

impl GitTree {
    fn read(
        &self,
        repository: &Repository,
        path: &str,
        (id, mode): (Oid, i32),
        depth: usize,
        budget: &mut Budget,
        files: &mut Files,
    ) -> Result<(), SourceError> {
        let broken = |source| SourceError::Repository {
            url: self.revision.to_string(),
            source,
        };
        check_mode(path, mode)?;
        if mode == 0o040_000 {
            budget.enter(path, depth)?;
            let tree = repository.find_tree(id).map_err(broken)?;
            for entry in &tree {
                let name = entry
                    .name()
                    .map_err(|_| refused(path, "a file name is not UTF-8"))?;
                // Git itself never writes such entries; a hostile server may.
                if name.is_empty()
                    || name == "."
                    || name == ".."
                    || name.eq_ignore_ascii_case(".git")
                    || name.contains(['/', '\\', '\0'])
                {
                    return Err(refused(path, format!("the entry name `{name}` is not allowed")));
                }
                let inner = if path.is_empty() {
                    name.to_owned()
                } else {
                    format!("{path}/{name}")
                };
                self.read(
                    repository,
                    &inner,
                    (entry.id(), entry.filemode()),
                    depth + 1,
                    budget,
                    files,
                )?;
            }
            return Ok(());
        }
        // The header tells the size, so that a huge blob is never unpacked.
        let (size, kind) = repository
            .odb()
            .and_then(|odb| odb.read_header(id))
            .map_err(broken)?;
        if kind != ObjectType::Blob {
            return Err(refused(path, "the entry is neither a file nor a folder"));
        }
        budget.file(path, size)?;
        let blob = repository.find_blob(id).map_err(broken)?;
        files.insert(path.to_owned(), Arc::from(blob.content()));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
