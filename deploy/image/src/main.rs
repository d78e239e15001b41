//! `bulkhead-image NAME:TAG ARCHITECTURE ARCHIVE PATH=FILE...`: an image of static programs, as an OCI archive.
//!
//! ```text
//! bulkhead-image bulkhead.dev/bulkhead:0.1.0 amd64 bulkhead.tar usr/bin/bulkheadd=target/…/bulkheadd …
//! ctr --namespace k8s.io images import bulkhead.tar
//! ```
//! The first program is what the image runs. The same files give the same archive, to the octet: no time and no owner of the
//! building machine is in it.

use bulkhead_image::{Architecture, File, Image};
use std::{env, fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    match make(env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bulkhead-image: {e}");
            ExitCode::FAILURE
        }
    }
}

fn make(arguments: Vec<String>) -> Result<(), Box<dyn std::error::Error>> {
    let [name, architecture, archive, files @ ..] = arguments.as_slice() else {
        return Err("usage: bulkhead-image NAME:TAG ARCHITECTURE ARCHIVE PATH=FILE...".into());
    };
    let architecture = Architecture::of(architecture)
        .ok_or_else(|| format!("no architecture is called {architecture}: give amd64 or arm64"))?;
    let mut programs = Vec::new();
    for file in files {
        let (path, source) = file.split_once('=').ok_or_else(|| format!("{file} is not PATH=FILE"))?;
        let content = fs::read(source).map_err(|e| format!("cannot read {source}: {e}"))?;
        programs.push(File { path: path.into(), content });
    }
    let bytes = Image { name, architecture, programs: &programs, arguments: &[] }.to_archive()?;
    let path = PathBuf::from(archive);
    // Whole, or not there.
    let draft = path.with_extension("part");
    fs::write(&draft, bytes).map_err(|e| format!("cannot write {}: {e}", draft.display()))?;
    fs::rename(&draft, &path).map_err(|e| format!("cannot write {archive}: {e}"))?;
    println!("{archive}");
    Ok(())
}
