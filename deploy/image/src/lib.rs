//! Container images without a container engine: static programs in, an OCI archive out.

mod archive;

pub use archive::{Architecture, File, Image, ImageError};
