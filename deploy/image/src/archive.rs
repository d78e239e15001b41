//! An image of one layer, as the OCI image specification 1.1 lays it out, in a tar.

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Write};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    pub fn of(name: &str) -> Option<Self> {
        [Self::Amd64, Self::Arm64].into_iter().find(|a| a.name() == name)
    }

    /// As GOARCH, which the specification asks for.
    fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// `e_machine` of its programs.
    fn machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }
}

/// A program, at its path in the image.
#[derive(Clone, Debug)]
pub struct File {
    pub path: String,
    pub content: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// With its tag.
    pub name: &'a str,
    pub architecture: Architecture,
    /// The first is what the image runs,
    pub programs: &'a [File],
    /// with these arguments, where a pod names none.
    pub arguments: &'a [&'a str],
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("an image needs a program")]
    Empty,
    #[error("{0} has no tag: give NAME:TAG")]
    Tag(String),
    #[error("{0} is not a path within the image: leave out the leading / and any ..")]
    Path(String),
    #[error("{0} is given twice")]
    Twice(String),
    #[error("{path} is no program for {architecture}: build it for that target")]
    Machine { path: String, architecture: &'static str },
    #[error("{0} needs a dynamic linker, which the image does not have: build it for a musl target")]
    Dynamic(String),
    #[error("cannot write the archive: {0}")]
    Write(#[from] io::Error),
}

impl Image<'_> {
    /// # Errors
    /// When a program would not run in the image, or is named in a way that the image cannot have.
    pub fn to_archive(self) -> Result<Vec<u8>, ImageError> {
        self.check()?;
        let layer = self.layer()?;
        let compressed = gzip(&layer)?;
        let mut archive = Blobs::default();
        let layer_blob = archive.add("application/vnd.oci.image.layer.v1.tar+gzip", compressed);
        let config =
            archive.add_json("application/vnd.oci.image.config.v1+json", &self.config(&digest(&layer)));
        let mut manifest = archive.add_json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config,
                "layers": [layer_blob],
            }),
        );
        manifest["platform"] = json!({"os": "linux", "architecture": self.architecture.name()});
        // containerd takes the whole name from the first, other tools from the second.
        manifest["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        });
        Ok(archive.finish(&index)?)
    }

    fn check(&self) -> Result<(), ImageError> {
        let tagged = self.name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if !tagged {
            return Err(ImageError::Tag(self.name.into()));
        }
        if self.programs.is_empty() {
            return Err(ImageError::Empty);
        }
        let mut seen = BTreeSet::new();
        for File { path, content } in self.programs {
            if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                return Err(ImageError::Path(path.clone()));
            }
            if !seen.insert(path) {
                return Err(ImageError::Twice(path.clone()));
            }
            let elf = Elf::read(content).filter(|elf| elf.machine == self.architecture.machine());
            match elf {
                None => {
                    let architecture = self.architecture.name();
                    return Err(ImageError::Machine { path: path.clone(), architecture });
                }
                Some(Elf { interpreter: true, .. }) => return Err(ImageError::Dynamic(path.clone())),
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>, ImageError> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut directories = BTreeSet::new();
        for File { path, .. } in self.programs {
            let ends = path.match_indices('/').map(|(end, _)| &path[..=end]);
            directories.extend(ends);
        }
        for directory in directories {
            append(&mut tar, directory, tar::EntryType::Directory, &[])?;
        }
        for File { path, content } in self.programs {
            append(&mut tar, path, tar::EntryType::Regular, content)?;
        }
        Ok(tar.into_inner()?)
    }

    fn config(&self, diff_id: &str) -> Value {
        let run = self.programs.first().map(|p| format!("/{}", p.path));
        json!({
            "architecture": self.architecture.name(),
            "os": "linux",
            "config": {"Entrypoint": [run], "Cmd": self.arguments, "Env": ["PATH=/usr/bin:/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        })
    }
}

/// What of a program's header matters here.
struct Elf {
    machine: u16,
    interpreter: bool,
}

impl Elf {
    /// Of a 64-bit little-endian program; None for anything else.
    fn read(bytes: &[u8]) -> Option<Self> {
        const INTERPRETER: u32 = 3;
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let table = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        let table = usize::try_from(table).ok()?;
        let kind = |i: usize| {
            let at = table.checked_add(i * size)?;
            Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
        };
        let interpreter = (0..count).any(|i| kind(i) == Some(INTERPRETER));
        Some(Self { machine: u16_at(18)?, interpreter })
    }
}

/// Content by its digest.
#[derive(Default)]
struct Blobs {
    blobs: Vec<(String, Vec<u8>)>,
}

impl Blobs {
    /// Its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
        self.blobs.push((digest.replace(':', "/"), content));
        descriptor
    }

    fn add_json(&mut self, media_type: &str, content: &Value) -> Value {
        self.add(media_type, content.to_string().into_bytes())
    }

    fn finish(self, index: &Value) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        append(&mut tar, "oci-layout", tar::EntryType::Regular, layout.as_bytes())?;
        append(&mut tar, "index.json", tar::EntryType::Regular, index.to_string().as_bytes())?;
        for directory in ["blobs/", "blobs/sha256/"] {
            append(&mut tar, directory, tar::EntryType::Directory, &[])?;
        }
        for (path, content) in self.blobs {
            append(&mut tar, &format!("blobs/{path}"), tar::EntryType::Regular, &content)?;
        }
        tar.into_inner()
    }
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(content.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content)
}

fn gzip(content: &[u8]) -> io::Result<Vec<u8>> {
    // No name and no time in its header.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    encoder.finish()
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    /// The head of a program with one segment of this kind.
    fn program(machine: u16, segment: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&segment.to_le_bytes());
        elf
    }

    fn image(programs: &[File]) -> Image<'_> {
        Image { name: "bulkhead.dev/bulkhead:1", architecture: Architecture::Amd64, programs, arguments: &[] }
    }

    fn file(path: &str, content: Vec<u8>) -> File {
        File { path: path.into(), content }
    }

    fn read(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn every_digest_leads_to_content_that_has_it() {
        let programs = [file("usr/bin/a", program(62, 1)), file("opt/b", program(62, 1))];
        let files = read(&image(&programs).to_archive().unwrap());
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap();
            let content = files[&format!("blobs/{}", name.replace(':', "/"))].clone();
            assert_eq!(digest(&content), name);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = json(&files["index.json"]);
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(blob(&manifest["layers"][0]).as_slice())
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/a");
        let layer = read(&layer);
        assert_eq!(layer.keys().collect::<Vec<_>>(), ["opt/", "opt/b", "usr/", "usr/bin/", "usr/bin/a"]);
        assert_eq!(layer["opt/b"], program(62, 1));
    }

    #[test]
    fn the_same_files_give_the_same_archive() {
        let programs = [file("a", program(62, 1))];
        assert_eq!(image(&programs).to_archive().unwrap(), image(&programs).to_archive().unwrap());
    }

    #[test]
    fn what_would_not_run_is_refused_by_name() {
        let error = |programs: &[File]| image(programs).to_archive().unwrap_err().to_string();
        assert!(error(&[file("a", program(62, 3))]).contains("a needs a dynamic linker"));
        assert!(error(&[file("a", program(183, 1))]).contains("a is no program for amd64"));
        assert!(error(&[file("a", b"#!/bin/sh".to_vec())]).contains("a is no program"));
        assert!(error(&[file("/a", program(62, 1))]).contains("not a path within"));
        assert!(error(&[file("../a", program(62, 1))]).contains("not a path within"));
        assert!(error(&[file("a", program(62, 1)), file("a", program(62, 1))]).contains("twice"));
        assert!(error(&[]).contains("needs a program"));
    }

    #[test]
    fn a_name_without_a_tag_is_refused() {
        let programs = [file("a", program(62, 1))];
        let image = Image { name: "registry:5000/bulkhead", ..image(&programs) };
        assert!(matches!(image.to_archive(), Err(ImageError::Tag(_))));
    }
}
