//! NumPy's format `.npy`: a magic string with a version, a header that is a dictionary of Python
//! (`descr`, `fortran_order`, `shape`), then the numbers. docs of NumPy: `numpy.lib.format`.
//!
//! Only numbers are read. Arrays of Python objects are pickles, which are never unpickled.

use super::sizes;
use crate::{Error, Result};
use std::fmt;
use tch::{Kind, Tensor};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest header that is read, in bytes. A usual one has 128.
const LONGEST_HEADER: usize = 1 << 16;

/// The length of the headers that [`header`] makes.
pub(super) const HEADER: usize = 128;

/// The header of a file of numbers of this type in row-major order, which follow it.
pub(super) fn header(descr: &str, shape: &[usize]) -> [u8; HEADER] {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    let mut header = [b' '; HEADER];
    let start = [MAGIC, &[1, 0], &((HEADER - 10) as u16).to_le_bytes(), text.as_bytes()].concat();
    header[..start.len()].copy_from_slice(&start);
    header[HEADER - 1] = b'\n';
    header
}

/// The bytes that [`announced_bytes`] needs: those of a header, and before it.
pub(super) const START: u64 = LONGEST_HEADER as u64 + 12;

/// An array.
#[derive(Debug)]
pub(super) struct Array {
    /// Where it is, for messages.
    pub place: String,
    /// The type as NumPy calls it: `uint8`.
    pub kind: &'static str,
    /// The numbers, of the array's shape, in row-major order.
    pub values: Tensor,
}

impl Array {
    /// Reads the contents of a file.
    ///
    /// # Errors
    /// If it is no array of numbers, is truncated, or has trailing bytes.
    pub(super) fn read(place: &str, bytes: &[u8]) -> Result<Self> {
        let header = Header::read(bytes).map_err(|why| Error::new(format!("{place} {why}")))?;
        let numbers = &bytes[header.length..];
        let (got, expected) = (numbers.len() as u128, header.bytes());
        if got != expected {
            let wrong = if got < expected { "is truncated" } else { "has trailing bytes" };
            return Err(Error::new(format!(
                "{place} {wrong}: expected {expected} bytes for {} numbers of {}, got {got}",
                sizes(&header.shape),
                header.number.name
            )));
        }
        let values = header.tensor(numbers).map_err(|why| Error::new(format!("{place} {why}")))?;
        Ok(Self { place: place.to_owned(), kind: header.number.name, values })
    }

    /// An error about this array: `PLACE MESSAGE`.
    pub(super) fn bad(&self, message: impl fmt::Display) -> Error {
        Error::new(format!("{} {message}", self.place))
    }

    /// Whether it holds whole numbers.
    pub(super) fn is_whole(&self) -> bool {
        !matches!(self.values.kind(), Kind::Half | Kind::Float | Kind::Double | Kind::Bool)
    }
}

/// The length of a whole file that begins with these bytes; none if they are no header.
pub(super) fn announced_bytes(start: &[u8]) -> Option<u128> {
    let header = Header::read(start).ok()?;
    Some(header.length as u128 + header.bytes())
}

/// A type of numbers.
#[derive(Clone, Copy)]
struct Number {
    /// The letter and the digits of `descr`.
    code: &'static str,
    /// NumPy's name.
    name: &'static str,
    bytes: usize,
    /// The type of the tensor. Unsigned types that libtorch lacks are read into a larger one.
    kind: Kind,
}

const fn number(code: &'static str, name: &'static str, bytes: usize, kind: Kind) -> Number {
    Number { code, name, bytes, kind }
}

const NUMBERS: [Number; 12] = [
    number("b1", "bool", 1, Kind::Bool),
    number("u1", "uint8", 1, Kind::Uint8),
    number("u2", "uint16", 2, Kind::Int),
    number("u4", "uint32", 4, Kind::Int64),
    number("u8", "uint64", 8, Kind::Int64),
    number("i1", "int8", 1, Kind::Int8),
    number("i2", "int16", 2, Kind::Int16),
    number("i4", "int32", 4, Kind::Int),
    number("i8", "int64", 8, Kind::Int64),
    number("f2", "float16", 2, Kind::Half),
    number("f4", "float32", 4, Kind::Float),
    number("f8", "float64", 8, Kind::Double),
];

struct Header {
    number: Number,
    is_big_endian: bool,
    /// Whether the first index varies fastest.
    is_column_major: bool,
    shape: Vec<usize>,
    /// Bytes before the numbers.
    length: usize,
}

impl Header {
    /// Reads a header; the error is what the file does or is.
    fn read(bytes: &[u8]) -> std::result::Result<Self, String> {
        let unknown = || "is not a NumPy array (.npy): it has another beginning".to_owned();
        let [major, _, rest @ ..] = bytes.strip_prefix(MAGIC).ok_or_else(unknown)? else {
            return Err("is truncated: its header has no end".to_owned());
        };
        let (length, text) = match (major, rest) {
            (1, [a, b, text @ ..]) => (usize::from(u16::from_le_bytes([*a, *b])), text),
            (2 | 3, [a, b, c, d, text @ ..]) => {
                (usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX), text)
            }
            (1..=3, _) => return Err("is truncated: its header has no end".to_owned()),
            _ => return Err(format!("has version {major} of NumPy's format: expected 1, 2 or 3")),
        };
        if length > LONGEST_HEADER {
            return Err(format!(
                "has a header of {length} bytes: expected at most {LONGEST_HEADER} for an array of numbers"
            ));
        }
        let before = bytes.len() - text.len();
        let text = text.get(..length).ok_or("is truncated: its header has no end")?;
        let text = std::str::from_utf8(text).map_err(|_| "has a header that is not text".to_owned())?;
        Self::of_dictionary(text, before + length)
    }

    fn of_dictionary(text: &str, length: usize) -> std::result::Result<Self, String> {
        let bad = |what: &str| format!("has a header without {what}: {}", shortened(text));
        let inside = text.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let mut rest = inside.ok_or_else(|| bad("a dictionary"))?;
        let (mut descr, mut order, mut shape) = (None, None, None);
        while !rest.trim().is_empty() {
            let (key, after) = quoted(rest).ok_or_else(|| bad("keys in quotes"))?;
            let after = after.trim_start().strip_prefix(':').ok_or_else(|| bad("a colon after each key"))?;
            let (value, after) = value(after).ok_or_else(|| bad("a value for each key"))?;
            match key {
                "descr" => descr = Some(value),
                "fortran_order" => order = Some(value),
                "shape" => shape = Some(value),
                _ => return Err(bad("other keys than descr, fortran_order and shape")),
            }
            let after = after.trim_start();
            rest = after.strip_prefix(',').unwrap_or(after);
            if rest.len() == after.len() && !rest.is_empty() {
                return Err(bad("commas between keys"));
            }
        }
        let (is_big_endian, number) = number_of(descr.ok_or_else(|| bad("descr"))?)?;
        let is_column_major = match order.ok_or_else(|| bad("fortran_order"))? {
            "True" => true,
            "False" => false,
            _ => return Err(bad("True or False for fortran_order")),
        };
        let shape = shape.ok_or_else(|| bad("shape"))?;
        let shape = shape.strip_prefix('(').and_then(|shape| shape.strip_suffix(')'));
        let sizes = shape.ok_or_else(|| bad("a tuple for shape"))?.split(',').map(str::trim);
        let shape = sizes.filter(|size| !size.is_empty()).map(|size| size.parse::<usize>());
        let shape = shape.collect::<std::result::Result<_, _>>();
        let shape: Vec<usize> = shape.map_err(|_| bad("whole numbers for shape"))?;
        Ok(Self { number, is_big_endian, is_column_major, shape, length })
    }

    /// The number of bytes after the header.
    fn bytes(&self) -> u128 {
        let product = self.shape.iter().try_fold(1u128, |product, size| product.checked_mul(*size as u128));
        product.and_then(|count| count.checked_mul(self.number.bytes as u128)).unwrap_or(u128::MAX)
    }

    /// The numbers, of which there are as many as the header says.
    fn tensor(&self, numbers: &[u8]) -> std::result::Result<Tensor, String> {
        let swapped: Vec<u8>;
        let numbers = if self.is_big_endian && self.number.bytes > 1 {
            swapped = numbers.chunks(self.number.bytes).flat_map(|one| one.iter().rev().copied()).collect();
            &swapped
        } else {
            numbers
        };
        let mut shape: Vec<i64> = self.shape.iter().map(|size| *size as i64).collect();
        if self.is_column_major {
            shape.reverse();
        }
        let refused =
            |why: tch::TchError| format!("cannot be read: {}", plugin_api::first_line(&why.to_string()));
        let whole = |values: Vec<i64>| Tensor::f_from_slice(&values);
        let values = match self.number.code {
            "u2" => whole(numbers.as_chunks().0.iter().map(|one| u16::from_le_bytes(*one).into()).collect()),
            "u4" => whole(numbers.as_chunks().0.iter().map(|one| u32::from_le_bytes(*one).into()).collect()),
            "u8" => {
                let all = numbers.as_chunks().0.iter().map(|one| i64::try_from(u64::from_le_bytes(*one)));
                let all = all.collect::<std::result::Result<_, _>>();
                whole(all.map_err(|_| "has numbers above 9223372036854775807".to_owned())?)
            }
            _ => Tensor::f_from_data_size(
                numbers,
                &[numbers.len() as i64 / self.number.bytes as i64],
                self.number.kind,
            ),
        };
        let values = values.and_then(|values| values.f_view(shape.as_slice())).map_err(refused)?;
        if !self.is_column_major {
            return Ok(values);
        }
        let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
        values.f_permute(reversed).and_then(|values| values.f_contiguous()).map_err(refused)
    }
}

/// The byte order and the type of a `descr`.
fn number_of(descr: &str) -> std::result::Result<(bool, Number), String> {
    let text = quoted(descr).filter(|(_, rest)| rest.is_empty()).map(|(text, _)| text);
    let Some(text) = text else {
        return Err(format!("holds records of several fields ({}): expected numbers", shortened(descr)));
    };
    let code = text.trim_start_matches(['<', '>', '|', '=']);
    if code.starts_with('O') {
        return Err(
            "holds pickled Python objects (dtype object), which are never unpickled: expected numbers"
                .to_owned(),
        );
    }
    let number = NUMBERS.into_iter().find(|number| number.code == code);
    let number = number.ok_or_else(|| {
        let names = NUMBERS.map(|number| number.name).join(", ");
        format!("holds values of type {}: expected one of {names}", shortened(text))
    })?;
    Ok((text.starts_with('>'), number))
}

/// What is in quotes at the start, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
    text[1..].split_once(quote)
}

/// The value at the start, without white space around it, and what follows.
fn value(text: &str) -> Option<(&str, &str)> {
    let (mut closing, mut quote) = (Vec::new(), None);
    for (place, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(letter),
            (None, '(') => closing.push(')'),
            (None, '[') => closing.push(']'),
            (None, ')' | ']') if closing.pop() != Some(letter) => return None,
            (None, ',') if closing.is_empty() => return Some((text[..place].trim(), &text[place..])),
            _ => {}
        }
    }
    (closing.is_empty() && quote.is_none()).then_some((text.trim(), ""))
}

/// Some letters of a text of unknown length.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    let start: String = text.trim().chars().take(SHOWN).collect();
    let more = if text.trim().chars().count() > SHOWN { "…" } else { "" };
    format!("{}{more}", start.replace(char::is_control, "?"))
}

/// The contents of a file of unsigned bytes in row-major order.
#[cfg(test)]
pub(super) fn encode(descr: &str, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    encode_in_order(descr, "False", shape, bytes)
}

#[cfg(test)]
pub(super) fn encode_in_order(descr: &str, order: &str, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({sizes}), }}");
    let text = format!("{text:<117}\n");
    [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::first_line;
    use std::path::Path;

    fn read(bytes: &[u8]) -> Array {
        Array::read("FILE", bytes).expect("valid")
    }

    fn refusal(bytes: &[u8]) -> String {
        first_line(Array::read("FILE", bytes), Path::new("unused"))
    }

    fn numbers(array: &Array) -> Vec<f64> {
        Vec::try_from(array.values.flatten(0, -1).to_kind(Kind::Double)).expect("numbers")
    }

    #[test]
    fn every_type_is_read_in_both_byte_orders() {
        let cases: [(&str, &[u8], f64); 12] = [
            ("b1", &[1], 1.0),
            ("u1", &[200], 200.0),
            ("u2", &[0x34, 0xf2], 62004.0),
            ("u4", &[1, 0, 0, 0xf0], 4026531841.0),
            ("u8", &[1, 0, 0, 0, 1, 0, 0, 0], 4294967297.0),
            ("i1", &[0xfe], -2.0),
            ("i2", &[0xfe, 0xff], -2.0),
            ("i4", &[0xfe, 0xff, 0xff, 0xff], -2.0),
            ("i8", &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], -2.0),
            ("f2", &[0x00, 0xb8], -0.5),
            ("f4", &[0, 0, 0, 0xbf], -0.5),
            ("f8", &[0, 0, 0, 0, 0, 0, 0xe0, 0xbf], -0.5),
        ];
        for (code, little, value) in cases {
            let zero = vec![0; little.len()];
            let big: Vec<u8> = little.iter().rev().copied().collect();
            for (order, bytes) in [("<", little), ("|", little), (">", &big), ("=", little)] {
                let file = encode(&format!("{order}{code}"), &[2], &[&zero, bytes].concat());
                let array = read(&file);
                assert_eq!(numbers(&array), [0.0, value], "{order}{code}");
                assert_eq!(array.is_whole(), !code.starts_with(['f', 'b']));
            }
        }
    }

    #[test]
    fn column_major_order_becomes_row_major() {
        // numpy.asfortranarray([[1, 2, 3], [4, 5, 6]])
        let array = read(&encode_in_order("|u1", "True", &[2, 3], &[1, 4, 2, 5, 3, 6]));
        assert_eq!(array.values.size(), [2, 3]);
        assert_eq!(numbers(&array), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(array.values.is_contiguous());
        assert_eq!(read(&encode("|u1", &[], &[7])).values.size(), [0i64; 0]);
    }

    #[test]
    fn other_versions_of_the_header_are_read() {
        let text = b"{\"shape\":(2,),'fortran_order':False,'descr':'|u1'}";
        let two = [MAGIC, &[2, 0], &(text.len() as u32).to_le_bytes(), text, &[8, 9]].concat();
        assert_eq!(numbers(&read(&two)), [8.0, 9.0]);
        let four = [MAGIC, &[4, 0], &(text.len() as u32).to_le_bytes(), text, &[8, 9]].concat();
        assert_eq!(refusal(&four), "FILE has version 4 of NumPy's format: expected 1, 2 or 3");
        let long = [MAGIC, &[2, 0], &u32::MAX.to_le_bytes(), text].concat();
        assert!(refusal(&long).starts_with("FILE has a header of 4294967295 bytes: expected at most"));
    }

    #[test]
    fn what_is_no_array_of_numbers_is_refused() {
        assert_eq!(
            refusal(&encode("|O", &[1], b"\x80\x04.")),
            "FILE holds pickled Python objects (dtype object), which are never unpickled: expected numbers"
        );
        assert!(
            refusal(&encode("<U5", &[1], &[0; 20]))
                .starts_with("FILE holds values of type <U5: expected one of ")
        );
        assert!(refusal(&encode("<c8", &[1], &[0; 8])).starts_with("FILE holds values of type <c8"));
        assert_eq!(refusal(&encode("<u8", &[1], &[0xff; 8])), "FILE has numbers above 9223372036854775807");
        assert_eq!(refusal(b"\x89PNG"), "FILE is not a NumPy array (.npy): it has another beginning");
        let records = b"{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (1,)}";
        let records = [MAGIC, &[1, 0], &(records.len() as u16).to_le_bytes(), records, &[0; 8]].concat();
        assert_eq!(
            refusal(&records),
            "FILE holds records of several fields ([('a', '<f4'), ('b', '<f4')]): expected numbers"
        );
    }

    #[test]
    fn a_file_whose_length_differs_from_its_header_is_refused() {
        let whole = encode("<u2", &[2, 3], &[0; 12]);
        assert_eq!(
            refusal(&whole[..whole.len() - 1]),
            "FILE is truncated: expected 12 bytes for 2 x 3 numbers of uint16, got 11"
        );
        assert_eq!(
            refusal(&[whole.as_slice(), &[0]].concat()),
            "FILE has trailing bytes: expected 12 bytes for 2 x 3 numbers of uint16, got 13"
        );
        assert_eq!(refusal(&whole[..20]), "FILE is truncated: its header has no end");
        let huge = encode("<f8", &[usize::MAX, usize::MAX, usize::MAX], &[]);
        assert!(refusal(&huge).starts_with("FILE is truncated: expected "));
        assert_eq!(announced_bytes(&whole), Some(whole.len() as u128));
        assert_eq!(announced_bytes(b"PK"), None);
    }

    #[test]
    fn a_damaged_header_is_refused() {
        let header = |text: &str| {
            refusal(&[MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat())
        };
        assert_eq!(header("{'descr': '|u1'}"), "FILE has a header without fortran_order: {'descr': '|u1'}");
        for text in ["", "[]", "{1: 2}", "{'descr' '|u1'}", "{'descr': ]}", "{'descr': (]}", "{'a': 1}"] {
            let refused = header(text);
            assert!(refused.starts_with("FILE has a header without "), "{text}: {refused}");
        }
        assert!(
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}")
                .starts_with("FILE has a header without whole numbers for shape")
        );
    }
}
