//! `tls` of listeners and pools: certificates, keys and authorities, from files beside the config.
//!
//! They are read and checked with the config, so that `check` finds what would keep clients out. A
//! problem with what is in a file stands at the name of that file.

use std::path::Path;

use rustls::pki_types::{CertificateDer, ServerName};

use crate::config::Environment;
use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located};
use crate::config::value::quoted;
use crate::pool::tls::BackendTls;
use crate::tls::{self, KeyPair};

const CERTIFICATES: &str =
    "write at least one, such as tls.certificates = [{ cert = \"site.pem\", key = \"site.key\" }]";

/// Where files come from.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    /// Where relative paths start.
    pub(super) folder: &'a Path,
    /// What reads them, and knows the time.
    pub(super) environment: &'a Environment<'a>,
}

/// A file that the config names, and what it holds.
struct File {
    name: Located<String>,
    text: String,
}

impl Files<'_> {
    /// Reads the file that a key names; one that can't be read is noted.
    fn read(
        self,
        table: &Cursor<'_>,
        key: &str,
        name: Located<String>,
        problems: &mut Problems,
    ) -> Option<File> {
        match (self.environment.file)(&self.folder.join(&name.value)) {
            Ok(text) => Some(File { name, text }),
            Err(error) => {
                let what = format!(
                    "names the file {}, which can't be read ({error}); its path starts at the config's folder",
                    quoted(&name.value)
                );
                table.note(problems, name.span, key, &what);
                None
            }
        }
    }

    /// Reads a certificate and its key, and checks them.
    fn pair(
        self,
        table: &Cursor<'_>,
        keys: [&str; 2],
        names: [Located<String>; 2],
        problems: &mut Problems,
    ) -> Option<KeyPair> {
        let [cert, key] = names;
        let cert = self.read(table, keys[0], cert, problems);
        let key = self.read(table, keys[1], key, problems);
        let (cert, key) = (cert?, key?);
        match KeyPair::from_pem(&cert.text, &key.text, self.environment.now) {
            Ok(pair) => Some(pair),
            Err(error) => {
                let of_key = usize::from(error.is_of_key());
                let file = [cert.name, key.name][of_key].clone();
                note_file(table, keys[of_key], &file, &error.to_string(), problems);
                None
            }
        }
    }
}

fn note_file(
    table: &Cursor<'_>,
    key: &str,
    file: &Located<String>,
    what: &str,
    problems: &mut Problems,
) {
    let what = format!("names the file {}, which {what}", quoted(&file.value));
    table.note(problems, file.span.clone(), key, &what);
}

/// Takes `tls` of a listener: its certificates, the default first; none where there is no `tls`.
pub(super) fn certificates(
    listener: &mut Cursor<'_>,
    files: Files<'_>,
    problems: &mut Problems,
) -> Vec<KeyPair> {
    let given = listener.has("tls");
    let before = problems.len();
    let mut table = listener.table("tls", "listener.tls", "tls.", problems);
    let list = table.tables("certificates", "listener.tls.certificates", CERTIFICATES, problems);
    if given && list.is_empty() && problems.len() == before {
        table.note(problems, table.span(), "certificates", &format!("are missing; {CERTIFICATES}"));
    }
    let place = listener.place();
    let numbered = list.into_iter().enumerate();
    let pairs = numbered.filter_map(|(index, mut one)| {
        one.set_place(format!("{place}, certificate {}", index + 1));
        certificate(one, index, files, problems)
    });
    let pairs = pairs.collect();
    table.finish(problems);
    pairs
}

fn certificate(
    mut table: Cursor<'_>,
    index: usize,
    files: Files<'_>,
    problems: &mut Problems,
) -> Option<KeyPair> {
    let remedy = "name a PEM file with the certificate and the rest of its chain";
    let cert = table.require::<String>("cert", remedy, problems);
    let key = table.require::<String>("key", "name a PEM file with its private key", problems);
    let pair = match (cert, key) {
        (Some(cert), Some(key)) => {
            let span = cert.span.clone();
            let pair = files.pair(&table, ["cert", "key"], [cert, key], problems);
            if index > 0 && pair.as_ref().is_some_and(|pair| pair.names().is_empty()) {
                let what = "is for no host name, so no client gets it; only the first may be so";
                table.note(problems, span, "cert", what);
            }
            pair
        }
        _ => None,
    };
    table.finish(problems);
    pair
}

/// Takes `tls` of a pool; `None` where its backends are spoken to in the clear.
pub(super) fn with_backends(
    pool: &mut Cursor<'_>,
    files: Files<'_>,
    problems: &mut Problems,
) -> Option<BackendTls> {
    let span = pool.span_of("tls");
    if !pool.has_table("tls") {
        let wanted = pool.take::<bool>("tls", problems)?;
        let authorities = wanted.value.then(|| (files.environment.authorities)())?;
        return built(pool, authorities, None, None, span, problems);
    }
    let mut table = pool.table("tls", "pool.tls", "tls.", problems);
    let before = problems.len();
    let authorities = match table.take::<String>("ca", problems) {
        Some(ca) => authorities(&table, ca, files, problems),
        None => (files.environment.authorities)(),
    };
    let server_name = server_name(&mut table, problems);
    let client = client(&mut table, files, problems);
    let tls = (problems.len() == before)
        .then(|| built(&table, authorities, server_name, client, span, problems));
    table.finish(problems);
    tls.flatten()
}

fn built(
    table: &Cursor<'_>,
    authorities: Vec<CertificateDer<'static>>,
    server_name: Option<ServerName<'static>>,
    client: Option<KeyPair>,
    span: Option<std::ops::Range<usize>>,
    problems: &mut Problems,
) -> Option<BackendTls> {
    let tls = BackendTls::new(authorities, server_name, client);
    if tls.is_err() {
        let what = "tls believes nobody: this machine has no certificates of authorities; install \
                    them (ca-certificates), or name a file of your own, as in tls = { ca = \"ca.pem\" }";
        problems.at(span.unwrap_or(table.span()), format!("{}: {what}", table.place()));
    }
    tls.ok()
}

fn authorities(
    table: &Cursor<'_>,
    ca: Located<String>,
    files: Files<'_>,
    problems: &mut Problems,
) -> Vec<CertificateDer<'static>> {
    let Some(file) = files.read(table, "ca", ca, problems) else { return Vec::new() };
    let read = tls::certificates(&file.text).and_then(|read| {
        // Each of them is meant; of the system's some may be of no use.
        let damaged = |error: rustls::Error| tls::KeyPairError::Broken(error.to_string());
        for one in &read {
            rustls::RootCertStore::empty().add(one.clone()).map_err(damaged)?;
        }
        Ok(read)
    });
    read.unwrap_or_else(|error| {
        note_file(table, "ca", &file.name, &error.to_string(), problems);
        Vec::new()
    })
}

fn server_name(table: &mut Cursor<'_>, problems: &mut Problems) -> Option<ServerName<'static>> {
    let text = table.take::<String>("server_name", problems)?;
    match ServerName::try_from(text.value.clone()) {
        Ok(name) => Some(name),
        Err(_) => {
            let what = format!(
                "is no host name and no IP address: {}; write what the backends' certificate is for",
                quoted(&text.value)
            );
            table.note(problems, text.span, "server_name", &what);
            None
        }
    }
}

fn client(table: &mut Cursor<'_>, files: Files<'_>, problems: &mut Problems) -> Option<KeyPair> {
    const KEYS: [&str; 2] = ["client_cert", "client_key"];
    let cert = table.take::<String>(KEYS[0], problems);
    let key = table.take::<String>(KEYS[1], problems);
    match (cert, key) {
        (Some(cert), Some(key)) => files.pair(table, KEYS, [cert, key], problems),
        (None, None) => None,
        (Some(cert), None) => {
            table.note(problems, cert.span, KEYS[0], "stands alone; name its client_key too");
            None
        }
        (None, Some(key)) => {
            table.note(problems, key.span, KEYS[1], "stands alone; name its client_cert too");
            None
        }
    }
}
