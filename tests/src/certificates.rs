//! A certificate authority of the lab's own, and certificates for its services.

use std::path::PathBuf;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::Lab;

/// A certificate authority whose certificate lies in the lab's directory.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The authority's certificate (PEM), for clients to trust.
    pub file: PathBuf,
}

/// A service's certificate and key, as files (PEM).
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority.
    pub fn new(lab: &Lab) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Lab authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let file = lab.file("authority.pem", issuer.pem())?;
        Ok(Self { issuer, file })
    }

    /// Issues a certificate for these host names.
    pub fn issue(&self, lab: &Lab, names: &[&str]) -> Result<Certificate> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let stem = names.first().map_or("none", String::as_str).replace('*', "any");
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, stem.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Certificate {
            certificate: lab.file(&format!("{stem}.pem"), certificate.pem())?,
            key: lab.file(&format!("{stem}.key"), key.serialize_pem())?,
        })
    }
}
