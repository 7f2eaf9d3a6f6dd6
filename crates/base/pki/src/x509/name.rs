//! Subjects and issuers: which user and which groups a name means.
//!
//! A name may hold an attribute several times. Of common names and serial numbers the last one counts, of the others all
//! do; that is Go's reading, and so the cluster's.

use super::der::{self, Reader};
use super::{Error, Result, oid};

/// A distinguished name, reduced to what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    pub common_name: String,
    pub serial_number: String,
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub organizational_unit: Vec<String>,
    pub locality: Vec<String>,
    pub province: Vec<String>,
    pub street_address: Vec<String>,
    pub postal_code: Vec<String>,
    /// Every attribute that is text, the above among them, by the content of its identifier.
    pub attributes: Vec<(Vec<u8>, String)>,
}

/// How values that are no text are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// They are refused, as in certificates.
    Text,
    /// They say nothing, as in requests.
    Any,
}

impl Name {
    /// A name of a user and its groups.
    pub fn of(common_name: &str, organization: &[String]) -> Name {
        Name {
            common_name: common_name.into(),
            organization: organization.to_vec(),
            ..Name::default()
        }
    }

    /// Reads a name from its encoding.
    pub fn parse(raw: &[u8], values: Values) -> Result<Name> {
        let bad = |what: &str| Error::new(format!("x509: invalid RDNSequence{what}"));
        let mut name = Name::default();
        let mut outside = Reader(raw);
        let mut sequence = outside.enter(der::SEQUENCE).ok_or_else(|| bad(""))?;
        if !outside.is_empty() {
            return Err(Error::new("x509: trailing data after X.509 Subject"));
        }
        while !sequence.is_empty() {
            let mut set = sequence.enter(der::SET).ok_or_else(|| bad(""))?;
            while !set.is_empty() {
                let mut attribute = set.enter(der::SEQUENCE).ok_or_else(|| bad(": invalid attribute"))?;
                let kind = attribute.oid().ok_or_else(|| bad(": invalid attribute type"))?;
                let value = attribute.any().ok_or_else(|| bad(": invalid attribute value"))?;
                match text(value.tag, value.value).map_err(|e| bad(&format!(": invalid attribute value: {e}")))? {
                    Some(text) => name.add(kind, text),
                    None if values == Values::Any => {}
                    None => {
                        let why = format!(": invalid attribute value: unsupported string type: {}", value.tag);
                        return Err(bad(&why));
                    }
                }
            }
        }
        Ok(name)
    }

    fn add(&mut self, kind: &[u8], text: String) {
        self.attributes.push((kind.to_vec(), text.clone()));
        match kind {
            oid::COMMON_NAME => self.common_name = text,
            oid::SERIAL_NUMBER => self.serial_number = text,
            oid::COUNTRY => self.country.push(text),
            oid::LOCALITY => self.locality.push(text),
            oid::PROVINCE => self.province.push(text),
            oid::STREET_ADDRESS => self.street_address.push(text),
            oid::ORGANIZATION => self.organization.push(text),
            oid::ORGANIZATIONAL_UNIT => self.organizational_unit.push(text),
            oid::POSTAL_CODE => self.postal_code.push(text),
            _ => {}
        }
    }

    /// Writes what the name means, each attribute once: other attributes are left out.
    pub fn to_der(&self) -> Vec<u8> {
        let one = |text: &String| {
            if text.is_empty() {
                Vec::new()
            } else {
                vec![text.clone()]
            }
        };
        let sets = [
            (oid::COUNTRY, self.country.clone()),
            (oid::PROVINCE, self.province.clone()),
            (oid::LOCALITY, self.locality.clone()),
            (oid::STREET_ADDRESS, self.street_address.clone()),
            (oid::POSTAL_CODE, self.postal_code.clone()),
            (oid::ORGANIZATION, self.organization.clone()),
            (oid::ORGANIZATIONAL_UNIT, self.organizational_unit.clone()),
            (oid::COMMON_NAME, one(&self.common_name)),
            (oid::SERIAL_NUMBER, one(&self.serial_number)),
        ];
        let sets = sets.into_iter().filter(|(_, values)| !values.is_empty());
        der::wrap(
            der::SEQUENCE,
            sets.map(|(kind, values)| {
                der::set_of(
                    values
                        .iter()
                        .map(|v| der::wrap(der::SEQUENCE, [der::write(der::OBJECT_IDENTIFIER, kind), string(v)]))
                        .collect(),
                )
            }),
        )
    }
}

const fn is_printable(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'\''..=b')' | b'+'..=b'/' | b' ' | b':' | b'=' | b'?')
}

fn string(text: &str) -> Vec<u8> {
    let tag = match text.bytes().all(is_printable) {
        true => der::PRINTABLE_STRING,
        false => der::UTF8_STRING,
    };
    der::write(tag, text.as_bytes())
}

/// The text of a value; `None` if it is of a type that holds no text.
fn text(tag: u8, value: &[u8]) -> std::result::Result<Option<String>, &'static str> {
    let ascii = |fits: fn(u8) -> bool, why| match value.iter().all(|b| fits(*b)) {
        true => Ok(value.iter().map(|b| char::from(*b)).collect()),
        false => Err(why),
    };
    Ok(Some(match tag {
        // Eight bits in one of many code pages: taken for Latin-1, as everyone does.
        der::T61_STRING => value.iter().map(|b| char::from(*b)).collect(),
        // `*` and `&` are no members of the set, but found in the field.
        der::PRINTABLE_STRING => ascii(|b| is_printable(b) || b == b'*' || b == b'&', "invalid PrintableString")?,
        der::IA5_STRING => ascii(|b| b.is_ascii(), "invalid IA5String")?,
        der::NUMERIC_STRING => ascii(|b| b.is_ascii_digit() || b == b' ', "invalid NumericString")?,
        der::UTF8_STRING => String::from_utf8(value.to_vec()).map_err(|_| "invalid UTF-8 string")?,
        der::BMP_STRING => bmp(value).ok_or("invalid BMPString")?,
        _ => return Ok(None),
    }))
}

/// Two bytes a character; a terminating zero is cut off, surrogates and what will never be a character are refused.
fn bmp(value: &[u8]) -> Option<String> {
    if !value.len().is_multiple_of(2) {
        return None;
    }
    let value = value.strip_suffix(&[0, 0]).unwrap_or(value);
    let points = value.chunks(2).map(|c| u16::from_be_bytes([c[0], c[1]]));
    points
        .map(|p| match p {
            0xfffe | 0xffff | 0xfdd0..=0xfdef => None,
            p => char::from_u32(u32::from(p)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        let parts = [der::write(der::OBJECT_IDENTIFIER, kind), der::write(tag, value)];
        der::wrap(der::SET, [der::wrap(der::SEQUENCE, parts)])
    }

    #[test]
    fn the_last_common_name_counts_and_all_organizations_do() {
        let raw = der::wrap(
            der::SEQUENCE,
            [
                attribute(oid::COMMON_NAME, der::UTF8_STRING, b"first"),
                attribute(oid::ORGANIZATION, der::PRINTABLE_STRING, b"b&b"),
                attribute(oid::COMMON_NAME, der::BMP_STRING, b"\0l\0a\0s\0t"),
                attribute(oid::ORGANIZATION, der::T61_STRING, b"\xe9"),
                attribute(oid::KUBERNETES_UID, der::UTF8_STRING, b"u"),
            ],
        );
        let name = Name::parse(&raw, Values::Text).unwrap();
        assert_eq!(
            (name.common_name.as_str(), name.organization.clone()),
            ("last", vec!["b&b".into(), "é".into()])
        );
        assert_eq!(name.attributes.len(), 5);
        let again = Name::parse(&name.to_der(), Values::Text).unwrap();
        assert_eq!(
            (again.common_name.as_str(), again.organization),
            ("last", vec!["é".into(), "b&b".into()]),
            "DER sorts the members of a set"
        );
        assert_eq!(again.attributes.len(), 3, "each once, and only what is known");
    }

    #[test]
    fn values_that_are_no_text_say_nothing_in_requests() {
        let raw = der::wrap(der::SEQUENCE, [attribute(oid::COMMON_NAME, der::INTEGER, &[1])]);
        assert!(Name::parse(&raw, Values::Text).is_err());
        assert_eq!(Name::parse(&raw, Values::Any).unwrap(), Name::default());
        for (tag, bad) in [
            (der::PRINTABLE_STRING, &b"a@b"[..]),
            (der::UTF8_STRING, b"\xff"),
            (der::IA5_STRING, b"\x80"),
            (der::BMP_STRING, b"\xd8\x00"),
            (der::BMP_STRING, b"\x00"),
            (der::NUMERIC_STRING, b"1a"),
        ] {
            let raw = der::wrap(der::SEQUENCE, [attribute(oid::COMMON_NAME, tag, bad)]);
            assert!(Name::parse(&raw, Values::Any).is_err(), "{tag}");
        }
    }
}
