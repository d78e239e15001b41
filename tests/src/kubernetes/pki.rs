//! The lab's certificate authority: what an installer would make with openssl.

use crate::{Result, unmet};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::net::IpAddr;

pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, PEM.
pub struct Certificate {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn create() -> Result<Self> {
        let made = || {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "bulkhead-lab");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?.pem();
            Ok(Self { certificate, issuer: Issuer::new(params, key) })
        };
        made().or_else(failed)
    }

    /// PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// For a server that is called by these addresses and names.
    pub fn server(&self, addresses: &[IpAddr], names: &[&str]) -> Result<Certificate> {
        let made = || {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = addresses.iter().map(|a| SanType::IpAddress(*a)).collect();
            for name in names {
                params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
            }
            self.sign(params)
        };
        made().or_else(failed)
    }

    /// For a client that Kubernetes knows as this user of these groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Certificate> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params).or_else(failed)
    }

    fn sign(&self, params: CertificateParams) -> Result<Certificate, rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate { certificate, key: key.serialize_pem() })
    }
}

/// The two halves of a key that signs tokens of service accounts, PEM: private, public.
pub fn signing_key() -> Result<(String, String)> {
    KeyPair::generate().map(|key| (key.serialize_pem(), key.public_key_pem())).or_else(failed)
}

fn failed<T>(error: rcgen::Error) -> Result<T> {
    unmet(format!("making a certificate: {error}"))
}
