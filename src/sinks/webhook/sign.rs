//! Signatures as Standard Webhooks has them: HMAC-SHA256 over `id.timestamp.body`, one for each secret.
//!
//! With several secrets a receiver can be given a new one before the old one is taken away: it accepts
//! whichever of the signatures it can check.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretSlice};
use sha2::Sha256;

use crate::sinks::invalid::{InvalidText, invalid};

const PREFIX: &str = "whsec_";
/// Sizes of a key that Standard Webhooks allows.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const SECRETS_MAX: usize = 8;

/// The secrets that every request is signed with; mostly one, several while they change.
#[derive(Clone, derive_more::Debug)]
#[debug("{} secrets", _0.len())]
pub struct Secrets(Vec<SecretSlice<u8>>);

fn refused(wrong: &str) -> InvalidText {
    let right = "write whsec_ and 24 to 64 random bytes in base64 (`echo whsec_$(openssl rand -base64 32)`)";
    invalid(format!("{wrong}; {right}, separate several with a space"))
}

impl Secrets {
    /// Reads `whsec_…`, several with white space between.
    ///
    /// # Errors
    /// One is no such secret; the text of the error never shows it.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        let secrets = text.split_whitespace().map(parse_one).collect::<Result<Vec<_>, _>>()?;
        match secrets.len() {
            0 => Err(refused("is empty")),
            1..=SECRETS_MAX => Ok(Self(secrets)),
            _ => Err(refused("has more than 8 secrets")),
        }
    }

    /// Returns the value of `webhook-signature`. `time` is that of the attempt, in seconds since 1970.
    pub fn sign(&self, id: &str, time: i64, body: &[u8]) -> String {
        // One for each secret, so that a receiver can be given a new one before the old one is taken away.
        let signatures = self.0.iter().map(|secret| {
            let mut mac =
                Hmac::<Sha256>::new_from_slice(secret.expose_secret()).expect("HMAC takes keys of any length");
            mac.update(format!("{id}.{time}.").as_bytes());
            mac.update(body);
            format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

fn parse_one(text: &str) -> Result<SecretSlice<u8>, InvalidText> {
    let encoded = text.strip_prefix(PREFIX).ok_or_else(|| refused("is not a webhook secret"))?;
    let key = BASE64.decode(encoded).map_err(|_| refused("is not valid base64 after whsec_"))?;
    // Shorter keys can be guessed; a longer one is a file by mistake.
    if !KEY_BYTES.contains(&key.len()) {
        return Err(refused("has too few or too many bytes"));
    }
    Ok(SecretSlice::from(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification and of its libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_example_of_the_specification_is_signed_as_it_says() {
        let secrets = Secrets::parse(SECRET).unwrap();
        assert_eq!(secrets.sign(ID, 1_614_265_330, BODY), SIGNATURE);
    }

    #[test]
    fn with_several_secrets_there_is_a_signature_of_each_in_their_order() {
        let other = format!("whsec_{}", BASE64.encode([7; 24]));
        let alone = Secrets::parse(&other).unwrap().sign(ID, 1_614_265_330, BODY);
        let both = Secrets::parse(&format!("{SECRET}\n{other}\n")).unwrap();
        assert_eq!(both.sign(ID, 1_614_265_330, BODY), format!("{SIGNATURE} {alone}"));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        let short = format!("whsec_{}", BASE64.encode([7; 23]));
        let long = format!("whsec_{}", BASE64.encode([7; 65]));
        let many = format!("{SECRET} ").repeat(9);
        for text in ["", " ", "sesame", "whsec_sesame!", &short, &long, &many, &format!("{SECRET} sesame")] {
            let error = Secrets::parse(text).unwrap_err().to_string();
            assert!(!error.contains("sesame"), "{error}");
        }
        assert_eq!(format!("{:?}", Secrets::parse(SECRET).unwrap()), "1 secrets");
    }
}
