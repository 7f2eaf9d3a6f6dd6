//! Messages of D-Bus as bytes, as far as logind is spoken to: whole messages, whose arguments are plain values or variants of
//! plain values. No I/O.

use std::fmt;

/// The most that a message may take. Ours take a few hundred bytes.
pub const LONGEST: usize = 256 << 10;
/// What every message begins with.
const FIXED: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

/// A value that can be sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg<'a> {
    Text(&'a str),
    Bool(bool),
    I32(i32),
    U32(u32),
    /// A variant that holds a count.
    Count(u64),
    /// The place of a descriptor among those that are sent along.
    Descriptor(u32),
}

/// Who is to do what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    pub destination: &'a str,
    pub error: &'a str,
    pub reply_to: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub serial: u32,
    pub reply_to: Option<u32>,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub sender: String,
    pub error: String,
    pub signature: String,
    /// How many descriptors came along.
    pub descriptors: u32,
    body: Vec<u8>,
    big: bool,
}

/// What came isn't D-Bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub &'static str);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what the bus sent can't be read: {}", self.0)
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// A message, whole.
pub fn encode(kind: Kind, serial: u32, head: &Head, args: &[Arg]) -> Vec<u8> {
    let (mut body, mut signature, mut descriptors) = (Vec::new(), String::new(), 0u32);
    for arg in args {
        match arg {
            Arg::Text(text) => {
                signature.push('s');
                put_text(&mut body, text);
            }
            Arg::Bool(yes) => {
                signature.push('b');
                pad(&mut body, 4);
                body.extend(u32::from(*yes).to_le_bytes());
            }
            Arg::I32(n) => {
                signature.push('i');
                pad(&mut body, 4);
                body.extend(n.to_le_bytes());
            }
            Arg::U32(n) => {
                signature.push('u');
                pad(&mut body, 4);
                body.extend(n.to_le_bytes());
            }
            Arg::Count(n) => {
                signature.push('v');
                body.extend([1, b't', 0]);
                pad(&mut body, 8);
                body.extend(n.to_le_bytes());
            }
            Arg::Descriptor(n) => {
                signature.push('h');
                descriptors += 1;
                pad(&mut body, 4);
                body.extend(n.to_le_bytes());
            }
        }
    }
    let kind = match kind {
        Kind::Call => 1,
        Kind::Return => 2,
        Kind::Error => 3,
        Kind::Signal => 4,
    };
    let mut all = vec![b'l', kind, 0, 1];
    all.extend((body.len() as u32).to_le_bytes());
    all.extend(serial.to_le_bytes());
    // The length of the fields, once it is known.
    all.extend([0; 4]);
    let field = |all: &mut Vec<u8>, code: u8, kind: u8| {
        pad(all, 8);
        all.extend([code, 1, kind, 0]);
    };
    for (code, kind, text) in [
        (1, b'o', head.path),
        (2, b's', head.interface),
        (3, b's', head.member),
        (4, b's', head.error),
        (6, b's', head.destination),
    ] {
        if !text.is_empty() {
            field(&mut all, code, kind);
            put_text(&mut all, text);
        }
    }
    if let Some(serial) = head.reply_to {
        field(&mut all, 5, b'u');
        all.extend(serial.to_le_bytes());
    }
    if !signature.is_empty() {
        field(&mut all, 8, b'g');
        all.push(signature.len() as u8);
        all.extend(signature.as_bytes());
        all.push(0);
    }
    if descriptors > 0 {
        field(&mut all, 9, b'u');
        all.extend(descriptors.to_le_bytes());
    }
    let fields = (all.len() - FIXED) as u32;
    all[12..16].copy_from_slice(&fields.to_le_bytes());
    pad(&mut all, 8);
    all.append(&mut body);
    all
}

/// Reads values one after the other.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Wrong> {
        let end = self.at.checked_add(count).ok_or(Wrong("a length"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Wrong("it ends too early"))?;
        self.at = end;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, Wrong> {
        self.align(4);
        let bytes: [u8; 4] = self.take(4)?.try_into().map_err(|_| Wrong("a number"))?;
        Ok(if self.big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    pub fn u64(&mut self) -> Result<u64, Wrong> {
        self.align(8);
        let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| Wrong("a number"))?;
        Ok(if self.big {
            u64::from_be_bytes(bytes)
        } else {
            u64::from_le_bytes(bytes)
        })
    }

    fn ended(&mut self, length: usize) -> Result<String, Wrong> {
        let text = self.take(length)?;
        if self.take(1)? != [0] {
            return Err(Wrong("a text without its end"));
        }
        String::from_utf8(text.to_vec()).map_err(|_| Wrong("a text that isn't UTF-8"))
    }

    pub fn text(&mut self) -> Result<String, Wrong> {
        let length = self.u32()? as usize;
        self.ended(length)
    }

    pub fn signature(&mut self) -> Result<String, Wrong> {
        let length = self.take(1)?[0] as usize;
        self.ended(length)
    }
}

impl Message {
    pub fn body(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
            big: self.big,
        }
    }

    /// The first text: of an error, what is said about it.
    pub fn first_text(&self) -> String {
        match self.signature.starts_with('s') {
            true => self.body().text().unwrap_or_default(),
            false => String::new(),
        }
    }
}

/// How long the message is that begins here; `None`: that isn't known yet.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Wrong> {
    let Some(fixed) = bytes.get(..FIXED) else {
        return Ok(None);
    };
    if !matches!(fixed[0], b'l' | b'B') || fixed[3] != 1 {
        return Err(Wrong("no message begins so"));
    }
    let mut numbers = Reader {
        bytes: fixed,
        at: 4,
        big: fixed[0] == b'B',
    };
    let body = numbers.u32()? as usize;
    let _serial = numbers.u32()?;
    let fields = numbers.u32()? as usize;
    if body > LONGEST || fields > LONGEST {
        return Err(Wrong("a message is too long"));
    }
    let head = (FIXED + fields).next_multiple_of(8);
    Ok(Some((head, head + body)))
}

/// The first message of these bytes, and how many of them it takes; `None`: it isn't whole yet.
pub fn decode(bytes: &[u8]) -> Result<Option<(Message, usize)>, Wrong> {
    let Some((head, end)) = length(bytes)? else {
        return Ok(None);
    };
    let Some(whole) = bytes.get(..end) else { return Ok(None) };
    let big = whole[0] == b'B';
    let kind = match whole[1] {
        1 => Kind::Call,
        2 => Kind::Return,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => return Err(Wrong("a message of an unknown kind")),
    };
    let mut r = Reader {
        bytes: &whole[..head],
        at: 8,
        big,
    };
    let mut message = Message {
        kind,
        serial: r.u32()?,
        reply_to: None,
        path: String::new(),
        interface: String::new(),
        member: String::new(),
        sender: String::new(),
        error: String::new(),
        signature: String::new(),
        descriptors: 0,
        body: whole[head..].to_vec(),
        big,
    };
    let fields = FIXED + r.u32()? as usize;
    while r.at < fields {
        r.align(8);
        let code = r.take(1)?[0];
        let kind = r.signature()?;
        match (code, kind.as_str()) {
            (1, "o") => message.path = r.text()?,
            (2, "s") => message.interface = r.text()?,
            (3, "s") => message.member = r.text()?,
            (4, "s") => message.error = r.text()?,
            (5, "u") => message.reply_to = Some(r.u32()?),
            (7, "s") => message.sender = r.text()?,
            (8, "g") => message.signature = r.signature()?,
            (9, "u") => message.descriptors = r.u32()?,
            (_, "s" | "o") => _ = r.text()?,
            (_, "u") => _ = r.u32()?,
            (_, "g") => _ = r.signature()?,
            _ => return Err(Wrong("a field of an unknown type")),
        }
    }
    Ok(Some((message, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The call with which every connection begins, as dbus-daemon 1.14 takes it.
    const HELLO: &[u8] = b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x6d\x00\x00\x00\
        \x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00\
        \x02\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00\
        \x03\x01s\x00\x05\x00\x00\x00Hello\x00\x00\x00\
        \x06\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00";

    #[test]
    fn a_call_is_written_as_the_specification_has_it() {
        let head = Head {
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            destination: "org.freedesktop.DBus",
            ..Head::default()
        };
        let bytes = encode(Kind::Call, 1, &head, &[]);
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(HELLO));
    }

    #[test]
    fn values_come_back_and_parts_are_waited_for() {
        let head = Head {
            path: "/p",
            interface: "i.i",
            member: "M",
            reply_to: Some(7),
            ..Head::default()
        };
        let args = [
            Arg::Bool(true),
            Arg::Text("é"),
            Arg::Count(5_000_000),
            Arg::Descriptor(0),
        ];
        let bytes = encode(Kind::Signal, 3, &head, &args);
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Ok(None), "{end}");
        }
        let (m, length) = decode(&bytes).unwrap().unwrap();
        assert_eq!(
            (length, m.kind, m.serial, m.reply_to),
            (bytes.len(), Kind::Signal, 3, Some(7))
        );
        assert_eq!((m.signature.as_str(), m.descriptors), ("bsvh", 1));
        let mut r = m.body();
        assert_eq!((r.u32(), r.text()), (Ok(1), Ok("é".into())));
        assert_eq!(
            (r.signature(), r.u64(), r.u32()),
            (Ok("t".into()), Ok(5_000_000), Ok(0))
        );
        assert!(r.u32().is_err());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(decode(b"HTTP/1.1 400 Bad").is_err());
        let mut long = HELLO.to_vec();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&long).is_err());
        // Every byte changed: an error or another message, and never more than there is.
        for at in 0..HELLO.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = HELLO.to_vec();
                bytes[at] = value;
                if let Ok(Some((_, end))) = decode(&bytes) {
                    assert!(end <= bytes.len());
                }
            }
        }
    }
}
