//! MATLAB's files of version 5 (`.mat`), as far as arrays of numbers need it: a header of 128 bytes,
//! then elements, each with a tag of a type and a length ("MAT-File Format", The MathWorks). An
//! element may be compressed (zlib). Arrays are in column-major order.

use flate2::read::ZlibDecoder;
use std::io::Read;

/// The length of the header.
const HEADER: usize = 128;

/// Types of elements.
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// The flag of complex numbers.
const COMPLEX: u32 = 0x800;

/// Largest uncompressed size of an element.
const MOST_BYTES: u64 = 16 << 30;

/// An array of numbers.
#[derive(Debug, PartialEq)]
pub(super) struct Array {
    /// Its sizes; the first index varies fastest.
    pub shape: Vec<usize>,
    pub numbers: Numbers,
}

/// The numbers of an array.
#[derive(Debug, PartialEq)]
pub(super) enum Numbers {
    Bytes(Vec<u8>),
    /// Any other type.
    Others(Vec<f64>),
}

impl Numbers {
    fn count(&self) -> usize {
        match self {
            Self::Bytes(all) => all.len(),
            Self::Others(all) => all.len(),
        }
    }
}

/// What reading a file found to be wrong: what the file does or is.
type Result<T> = std::result::Result<T, String>;

/// Reads the arrays of these names; other variables are skipped.
///
/// # Errors
/// If the file is damaged or of another version, an array is missing, or is none of numbers.
pub(super) fn arrays<const N: usize>(file: &[u8], names: [&str; N]) -> Result<[Array; N]> {
    if file.starts_with(b"MATLAB 7.3") || file.starts_with(b"\x89HDF") {
        return Err("is of MATLAB's version 7.3 (HDF5): expected version 5, as save -v7 writes it".to_owned());
    }
    let is_big_endian = match file.get(HEADER - 4..HEADER) {
        Some([0, 1, b'I', b'M']) => false,
        Some([1, 0, b'M', b'I']) => true,
        _ => return Err("is not a MATLAB file of version 5: it has another header".to_owned()),
    };
    let mut found = names.map(|_| None);
    let mut rest = &file[HEADER..];
    while !rest.is_empty() {
        let (element, after) = Element::read(rest, is_big_endian, true)?;
        rest = after;
        let unpacked: Vec<u8>;
        let element = if element.kind == COMPRESSED {
            unpacked = uncompressed(element.bytes, is_big_endian)?;
            Element::read(&unpacked, is_big_endian, true)?.0
        } else {
            element
        };
        if element.kind != MATRIX {
            continue;
        }
        let variable = Variable::read(element.bytes, is_big_endian)?;
        if let Some(place) = names.iter().position(|name| name.as_bytes() == variable.name) {
            found[place] =
                Some(variable.array().map_err(|why| format!("has a variable {} that {why}", names[place]))?);
        }
    }
    let missing = names.iter().zip(&found).find(|(_, array)| array.is_none());
    if let Some((name, _)) = missing {
        return Err(format!("has no variable {name}: expected {}", names.join(" and ")));
    }
    Ok(found.map(|array| array.expect("none is missing")))
}

/// Decompresses no more than the element inside announces.
fn uncompressed(bytes: &[u8], is_big_endian: bool) -> Result<Vec<u8>> {
    let mut stream = ZlibDecoder::new(bytes);
    let mut contents = Vec::new();
    let failed = |why| format!("is corrupt: a zlib stream fails ({why})");
    (&mut stream).take(8).read_to_end(&mut contents).map_err(failed)?;
    if let [_, _, _, _, length @ ..] = &contents[..]
        && let Ok(length) = <[u8; 4]>::try_from(length)
    {
        let length = u64::from(word(length, is_big_endian)).min(MOST_BYTES);
        (&mut stream).take(length).read_to_end(&mut contents).map_err(failed)?;
    }
    Ok(contents)
}

fn word(bytes: [u8; 4], is_big_endian: bool) -> u32 {
    if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

/// An element: its type and its contents.
struct Element<'a> {
    kind: u32,
    bytes: &'a [u8],
}

impl<'a> Element<'a> {
    /// The first element, and what follows it. Only elements at the top of a file are not padded to
    /// 8 bytes.
    fn read(bytes: &'a [u8], is_big_endian: bool, is_at_top: bool) -> Result<(Self, &'a [u8])> {
        let truncated = || "is truncated: an element has no end".to_owned();
        let (words, _) = bytes.as_chunks::<4>();
        let [first, second, ..] = words else { return Err(truncated()) };
        let (kind, length) = (word(*first, is_big_endian), word(*second, is_big_endian) as usize);
        if kind >> 16 != 0 {
            // A small element: the length and up to four bytes are in the tag.
            let (small, length) = (kind & 0xffff, (kind >> 16) as usize);
            let inside = bytes[4..8].get(..length).ok_or("is damaged: a small element is too long")?;
            return Ok((Self { kind: small, bytes: inside }, &bytes[8..]));
        }
        let inside = bytes[8..].get(..length).ok_or_else(truncated)?;
        let padded = if is_at_top { length } else { length.next_multiple_of(8) };
        let after = bytes[8..].get(padded..).unwrap_or_default();
        Ok((Self { kind, bytes: inside }, after))
    }

    /// Its numbers.
    fn numbers(&self, is_big_endian: bool) -> Result<Numbers> {
        /// The numbers of a type, each of `N` bytes.
        fn of<const N: usize>(
            bytes: &[u8],
            is_big_endian: bool,
            read: impl Fn([u8; N]) -> f64,
        ) -> Option<Numbers> {
            let (all, rest) = bytes.as_chunks::<N>();
            let ordered = |mut one: [u8; N]| {
                if is_big_endian {
                    one.reverse();
                }
                one
            };
            rest.is_empty().then(|| Numbers::Others(all.iter().map(|one| read(ordered(*one))).collect()))
        }
        let (bytes, big) = (self.bytes, is_big_endian);
        let numbers = match self.kind {
            1 => of(bytes, big, |one| i8::from_le_bytes(one).into()),
            2 => Some(Numbers::Bytes(bytes.to_vec())),
            3 => of(bytes, big, |one| i16::from_le_bytes(one).into()),
            4 => of(bytes, big, |one| u16::from_le_bytes(one).into()),
            5 => of(bytes, big, |one| i32::from_le_bytes(one).into()),
            6 => of(bytes, big, |one| u32::from_le_bytes(one).into()),
            7 => of(bytes, big, |one| f32::from_le_bytes(one).into()),
            9 => of(bytes, big, f64::from_le_bytes),
            12 => of(bytes, big, |one| i64::from_le_bytes(one) as f64),
            13 => of(bytes, big, |one| u64::from_le_bytes(one) as f64),
            other => return Err(format!("holds elements of type {other}: expected numbers")),
        };
        numbers.ok_or_else(|| "ends within a number".to_owned())
    }
}

/// A variable, of which only the name is read yet.
struct Variable<'a> {
    flags: u32,
    shape: Vec<usize>,
    name: &'a [u8],
    /// The elements after the name.
    values: &'a [u8],
    is_big_endian: bool,
}

impl<'a> Variable<'a> {
    fn read(bytes: &'a [u8], is_big_endian: bool) -> Result<Self> {
        let (flags, rest) = Element::read(bytes, is_big_endian, false)?;
        let flags = flags.bytes.first_chunk().ok_or("is damaged: a variable has no flags")?;
        let flags = word(*flags, is_big_endian);
        let (shape, rest) = Element::read(rest, is_big_endian, false)?;
        let sizes = shape.bytes.as_chunks().0.iter().map(|size| word(*size, is_big_endian) as usize);
        let (name, values) = Element::read(rest, is_big_endian, false)?;
        Ok(Self { flags, shape: sizes.collect(), name: name.bytes, values, is_big_endian })
    }

    /// Its numbers; the error is what the variable does or is.
    fn array(&self) -> Result<Array> {
        // The classes of numbers: double, single, and whole numbers of 8 to 64 bits.
        let class = self.flags & 0xff;
        if !(6..=15).contains(&class) {
            return Err(format!("is of MATLAB's class {class}: expected an array of numbers"));
        }
        if self.flags & COMPLEX != 0 {
            return Err("holds complex numbers: expected real ones".to_owned());
        }
        let (element, _) = Element::read(self.values, self.is_big_endian, false)?;
        let numbers = element.numbers(self.is_big_endian)?;
        let expected = self.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        if expected != Some(numbers.count()) {
            let (shape, got) = (super::sizes(&self.shape), numbers.count());
            return Err(format!("has {got} numbers: its sizes are {shape}"));
        }
        Ok(Array { shape: self.shape.clone(), numbers })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::{Compression, write::ZlibEncoder};
    use std::io::Write;

    fn element(kind: u32, bytes: &[u8]) -> Vec<u8> {
        let mut whole = [&kind.to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat();
        whole.resize(whole.len().next_multiple_of(8), 0);
        whole
    }

    /// A variable of this class, whose numbers have this type.
    pub(crate) fn variable(name: &str, class: u32, shape: &[u32], kind: u32, numbers: &[u8]) -> Vec<u8> {
        let sizes: Vec<u8> = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
        let flags = [class.to_le_bytes(), [0; 4]].concat();
        let parts =
            [element(6, &flags), element(5, &sizes), element(1, name.as_bytes()), element(kind, numbers)];
        element(MATRIX, &parts.concat())
    }

    pub(crate) fn file(variables: &[Vec<u8>]) -> Vec<u8> {
        let text = format!("{:<124}", "MATLAB 5.0 MAT-file");
        [text.as_bytes(), &[0, 1, b'I', b'M'], &variables.concat()].concat()
    }

    /// The same variable, compressed.
    pub(crate) fn compressed(variable: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(variable).expect("written");
        let packed = encoder.finish().expect("finished");
        [&COMPRESSED.to_le_bytes()[..], &(packed.len() as u32).to_le_bytes(), &packed].concat()
    }

    fn read(variables: &[Vec<u8>]) -> Result<Array> {
        arrays(&file(variables), ["a"]).map(|[array]| array)
    }

    #[test]
    fn numbers_of_every_type_are_read() {
        let bytes = variable("a", 9, &[2, 1], 2, &[7, 8]);
        let expected = Array { shape: vec![2, 1], numbers: Numbers::Bytes(vec![7, 8]) };
        assert_eq!(read(std::slice::from_ref(&bytes)).expect("valid"), expected);
        let other = variable("other", 4, &[1, 1], 4, &[65, 0]);
        assert_eq!(read(&[other, compressed(&bytes)]).expect("valid"), expected);
        let cases: [(u32, &[u8], f64); 9] = [
            (1, &[0xfe], -2.0),
            (3, &[0xfe, 0xff], -2.0),
            (4, &[0xfe, 0xff], 65534.0),
            (5, &[0xfe, 0xff, 0xff, 0xff], -2.0),
            (6, &[2, 0, 0, 0], 2.0),
            (7, &[0, 0, 0, 0xbf], -0.5),
            (9, &[0, 0, 0, 0, 0, 0, 0xe0, 0xbf], -0.5),
            (12, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], -2.0),
            (13, &[2, 0, 0, 0, 0, 0, 0, 0], 2.0),
        ];
        for (kind, bytes, value) in cases {
            // MATLAB stores the numbers of a class in the smallest type that holds them.
            let array = read(&[variable("a", 6, &[1, 1], kind, bytes)]).expect("valid");
            assert_eq!(array.numbers, Numbers::Others(vec![value]));
        }
    }

    #[test]
    fn small_elements_and_the_other_byte_order_are_read() {
        // As scipy writes them: the name and the number in the tag.
        let small = |kind: u16, bytes: &[u8]| {
            let mut whole = [&kind.to_le_bytes()[..], &(bytes.len() as u16).to_le_bytes(), bytes].concat();
            whole.resize(8, 0);
            whole
        };
        let flags = [6u32.to_le_bytes(), [0; 4]].concat();
        let sizes = [1u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
        let parts = [element(6, &flags), element(5, &sizes), small(1, b"a"), small(2, &[9])];
        let array = read(&[element(MATRIX, &parts.concat())]).expect("valid");
        assert_eq!(array.numbers, Numbers::Bytes(vec![9]));

        let big = |kind: u32, bytes: &[u8]| {
            let mut whole = [&kind.to_be_bytes()[..], &(bytes.len() as u32).to_be_bytes(), bytes].concat();
            whole.resize(whole.len().next_multiple_of(8), 0);
            whole
        };
        let flags = [6u32.to_be_bytes(), [0; 4]].concat();
        let sizes = [1u32.to_be_bytes(), 1u32.to_be_bytes()].concat();
        let parts = [big(6, &flags), big(5, &sizes), big(1, b"a"), big(4, &[1, 2])].concat();
        let text = format!("{:<124}", "MATLAB 5.0 MAT-file");
        let file = [text.as_bytes(), &[1, 0, b'M', b'I'], &big(MATRIX, &parts)].concat();
        let [array] = arrays(&file, ["a"]).expect("valid");
        assert_eq!(array.numbers, Numbers::Others(vec![258.0]));
    }

    #[test]
    fn what_is_no_array_of_numbers_is_refused() {
        let refusal = |variables: &[Vec<u8>]| read(variables).expect_err("refused");
        assert_eq!(refusal(&[]), "has no variable a: expected a");
        assert_eq!(
            refusal(&[variable("a", 4, &[1, 1], 4, &[65, 0])]),
            "has a variable a that is of MATLAB's class 4: expected an array of numbers"
        );
        assert_eq!(
            refusal(&[variable("a", 6 | COMPLEX, &[1, 1], 9, &[0; 8])]),
            "has a variable a that holds complex numbers: expected real ones"
        );
        assert_eq!(
            refusal(&[variable("a", 9, &[3, 1], 2, &[1, 2])]),
            "has a variable a that has 2 numbers: its sizes are 3 x 1"
        );
        assert_eq!(
            refusal(&[variable("a", 6, &[1, 1], 9, &[1, 2])]),
            "has a variable a that ends within a number"
        );
        let whole = file(&[variable("a", 9, &[2, 1], 2, &[7, 8])]);
        for (bytes, why) in [
            (&b"MATLAB 7.3 MAT-file"[..], "is of MATLAB's version 7.3 (HDF5)"),
            (b"PK", "is not a MATLAB file of version 5"),
            (&whole[..HEADER + 4], "is truncated: an element has no end"),
            (&whole[..whole.len() - 20], "is truncated: an element has no end"),
        ] {
            let message = arrays(bytes, ["a"]).expect_err("refused");
            assert!(message.starts_with(why), "{message}");
        }
        let mut corrupt = file(&[compressed(&variable("a", 9, &[2, 1], 2, &[7, 8]))]);
        corrupt[HEADER + 12] ^= 0xff;
        assert!(arrays(&corrupt, ["a"]).is_err());
    }

    #[test]
    fn a_small_file_cannot_fill_the_memory() {
        let bomb = compressed(&[&element(MATRIX, &[0; 8])[..], &vec![0; 1 << 24]].concat());
        let memory = allocation_counter::measure(|| {
            let _ = arrays(&file(std::slice::from_ref(&bomb)), ["a"]);
        });
        assert!(memory.bytes_max < 1 << 20, "{}", memory.bytes_max);
    }
}
