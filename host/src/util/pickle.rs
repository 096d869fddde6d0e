//! Pickles of Python, protocols 0 to 5, read as data.
//!
//! Nothing in a pickle is executed or imported: a call is kept as the name of what would be called
//! and its arguments, which a reader of one kind of file may then recognise. Values refer to each
//! other by number, as in Python, so that a value that occurs a thousand times is there once, and a
//! small file cannot grow into a large tree. Reading does not recurse and takes memory in proportion
//! to the file. A list may contain itself: whoever walks through a pickle must bound the depth.
//!
//! The format: `Lib/pickletools.py` of CPython.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle<'b> {
    nodes: Vec<Node<'b>>,
    root: Id,
    #[cfg(test)]
    length: usize,
}

/// Why a pickle was not read.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    offset: usize,
    opcode: Option<u8>,
    why: Cow<'static, str>,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, opcode, why } = self;
        write!(formatter, "its pickle is damaged at byte {offset}")?;
        match opcode {
            Some(code) => write!(formatter, ", opcode {}: {why}", opcode_name(*code)),
            None => write!(formatter, ": {why}"),
        }
    }
}

impl std::error::Error for Fault {}

/// The place of a value.
type Id = u32;

#[derive(Debug)]
enum Node<'b> {
    None,
    Bool(bool),
    Int(i128),
    #[cfg_attr(not(test), expect(dead_code, reason = "no file that is read has one that matters"))]
    Float(f64),
    Bytes(Cow<'b, [u8]>),
    Text(Cow<'b, str>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Id, Id),
    Call(Box<Call>),
    Persistent(Id),
}

#[derive(Debug)]
struct Call {
    callable: Id,
    arguments: Id,
    state: Option<Id>,
    entries: Vec<(Id, Id)>,
}

/// A value of a pickle.
#[derive(Clone, Copy)]
pub struct Value<'p, 'b> {
    pickle: &'p Pickle<'b>,
    id: Id,
}

/// What would be called to make a value, and with what. Classes are called, too.
pub struct Reduce<'p, 'b> {
    /// What would be called.
    pub callable: Value<'p, 'b>,
    /// Its arguments: a tuple, or for arguments with names a tuple of a tuple and a dictionary.
    pub arguments: Value<'p, 'b>,
    /// The state that the value would get afterwards.
    pub state: Option<Value<'p, 'b>>,
}

/// An array of NumPy.
#[derive(Debug, PartialEq, Eq)]
pub struct Array<'p> {
    /// The sizes of its dimensions.
    pub shape: Vec<usize>,
    /// Byte order and type as NumPy writes them: `|u1`, `<f4`, `>i8`.
    pub dtype: String,
    /// Whether the first index varies fastest (`order="F"`), instead of the last.
    pub fortran: bool,
    /// Its numbers; as many as the shape says.
    pub bytes: Cow<'p, [u8]>,
}

impl<'b> Pickle<'b> {
    /// Reads the pickle at the start of `bytes`.
    ///
    /// # Errors
    /// If there is no whole pickle, an opcode is unknown or of no use in a file (those that need
    /// an agreement with another program), or a whole number has more than 16 bytes.
    pub fn read(bytes: &'b [u8]) -> Result<Self, Fault> {
        let mut machine = Machine {
            bytes,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let offset = machine.at;
            let opcode = machine.bytes.get(offset).copied();
            let fault = |why| Fault { offset, opcode, why };
            let Some(code) = opcode else {
                return Err(fault("the file ends before the pickle does".into()));
            };
            machine.at += 1;
            if let Some(root) = machine.execute(code).map_err(fault)? {
                return Ok(Self {
                    nodes: machine.nodes,
                    root,
                    #[cfg(test)]
                    length: machine.at,
                });
            }
        }
    }

    /// The value that was pickled.
    pub fn root(&self) -> Value<'_, 'b> {
        self.value(self.root)
    }

    /// The number of bytes of the pickle; others may follow it.
    #[cfg(test)]
    pub fn length(&self) -> usize {
        self.length
    }

    fn value(&self, id: Id) -> Value<'_, 'b> {
        Value { pickle: self, id }
    }
}

impl<'p, 'b> Value<'p, 'b> {
    fn node(self) -> &'p Node<'b> {
        &self.pickle.nodes[self.id as usize]
    }

    /// A number that only this value of the pickle has.
    #[cfg(test)]
    pub fn identity(self) -> u32 {
        self.id
    }

    /// A truth value.
    pub fn bool(self) -> Option<bool> {
        match self.node() {
            Node::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A whole number.
    pub fn int(self) -> Option<i128> {
        match self.node() {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A whole number that fits into this type.
    pub fn integer<T: TryFrom<i128>>(self) -> Option<T> {
        self.int().and_then(|value| T::try_from(value).ok())
    }

    /// A text; also a `str` of Python 2, which is bytes, if it is UTF-8.
    pub fn text(self) -> Option<&'p str> {
        match self.node() {
            Node::Text(text) => Some(text),
            Node::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Bytes: those of `bytes`, `bytearray` and Python 2's `str`. Python 3 writes them for
    /// protocols up to 2 as a text that is to be encoded in Latin-1.
    pub fn bytes(self) -> Option<Cow<'p, [u8]>> {
        if let Some(bytes) = self.bytes_alone() {
            return Some(bytes);
        }
        let call = self.reduce()?;
        let arguments: Vec<_> = call.arguments.items()?.collect();
        match (call.callable.global()?, arguments.as_slice()) {
            (("__builtin__" | "builtins", "bytearray"), [bytes]) => bytes.bytes_alone(),
            (("__builtin__" | "builtins", "bytes" | "bytearray"), []) => Some(Cow::Borrowed(&[])),
            _ => None,
        }
    }

    /// The same without `bytearray`, of which the bytes may be an argument.
    fn bytes_alone(self) -> Option<Cow<'p, [u8]>> {
        if let Node::Bytes(bytes) = self.node() {
            return Some(Cow::Borrowed(bytes));
        }
        let call = self.reduce()?;
        let [text, encoding] = call.arguments.tuple()?;
        let is_encoded = call.callable.global() == Some(("_codecs", "encode"));
        let is_latin_1 = matches!(encoding.text(), Some("latin1" | "latin-1"));
        if is_encoded && is_latin_1 { latin_1(text.text()?) } else { None }
    }

    /// The values in a list, a tuple or a set.
    pub fn items(self) -> Option<impl ExactSizeIterator<Item = Value<'p, 'b>> + use<'p, 'b>> {
        match self.node() {
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => {
                Some(items.iter().map(move |id| self.pickle.value(*id)))
            }
            _ => None,
        }
    }

    /// The values of a tuple of this length.
    pub fn tuple<const N: usize>(self) -> Option<[Value<'p, 'b>; N]> {
        match self.node() {
            Node::Tuple(items) => {
                let items: [Id; N] = items.as_slice().try_into().ok()?;
                Some(items.map(|id| self.pickle.value(id)))
            }
            _ => None,
        }
    }

    /// Keys and values of a dictionary or an `OrderedDict`, in their order. A key may occur again;
    /// the last one counts.
    pub fn entries(
        self,
    ) -> Option<impl ExactSizeIterator<Item = (Value<'p, 'b>, Value<'p, 'b>)> + use<'p, 'b>> {
        let entries = match self.node() {
            Node::Dict(entries) => entries,
            Node::Call(call) => {
                let is_ordered =
                    self.pickle.value(call.callable).global() == Some(("collections", "OrderedDict"));
                is_ordered.then_some(&call.entries)?
            }
            _ => return None,
        };
        Some(entries.iter().map(move |(key, value)| (self.pickle.value(*key), self.pickle.value(*value))))
    }

    /// The value of a key that is a text, in a dictionary or an `OrderedDict`.
    pub fn get(self, key: &str) -> Option<Value<'p, 'b>> {
        let found = self.entries()?.filter(|(found, _)| found.text() == Some(key));
        found.last().map(|(_, value)| value)
    }

    /// Module and name of a function or a class.
    pub fn global(self) -> Option<(&'p str, &'p str)> {
        match self.node() {
            Node::Global(module, name) => {
                Some((self.pickle.value(*module).text()?, self.pickle.value(*name).text()?))
            }
            _ => None,
        }
    }

    /// A value that would be made by a call.
    pub fn reduce(self) -> Option<Reduce<'p, 'b>> {
        match self.node() {
            Node::Call(call) => Some(Reduce {
                callable: self.pickle.value(call.callable),
                arguments: self.pickle.value(call.arguments),
                state: call.state.map(|id| self.pickle.value(id)),
            }),
            _ => None,
        }
    }

    /// What an object outside the pickle is known by.
    pub fn persistent(self) -> Option<Value<'p, 'b>> {
        match self.node() {
            Node::Persistent(id) => Some(self.pickle.value(*id)),
            _ => None,
        }
    }

    /// An array of NumPy, pickled by any version of it.
    ///
    /// # Errors
    /// If this is another value, or an array whose type, shape and bytes do not fit together.
    pub fn numpy_array(self) -> Result<Array<'p>, String> {
        let other = || format!("expected an array of NumPy, got {self}");
        let call = self.reduce().ok_or_else(other)?;
        let (module, function) = call.callable.global().ok_or_else(other)?;
        let (shape, dtype, fortran, bytes) = match (module, function) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                let state = call.state.and_then(Value::tuple);
                let [_, shape, dtype, fortran, bytes] = state.ok_or("the array has no numbers")?;
                let fortran = fortran.bool().or_else(|| fortran.int().map(|value| value != 0));
                (shape, dtype, fortran.unwrap_or_default(), bytes)
            }
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
                let [bytes, dtype, shape, order] = call.arguments.tuple().ok_or_else(other)?;
                (shape, dtype, order.text() == Some("F"), bytes)
            }
            _ => return Err(other()),
        };
        let sides = shape.items().ok_or_else(|| format!("expected a shape, got {shape}"))?;
        let shape: Option<Vec<usize>> = sides.map(|side| side.integer()).collect();
        let shape = shape.ok_or("a size of the array is no whole number")?;
        let (dtype, size) = numpy_type(dtype)?;
        let bytes = bytes.bytes().ok_or_else(|| format!("expected the array's bytes, got {bytes}"))?;
        let expected = shape.iter().try_fold(size, |product: usize, side| product.checked_mul(*side));
        if expected != Some(bytes.len()) {
            return Err(format!(
                "an array of shape {shape:?} and type {dtype} does not have {} bytes",
                bytes.len()
            ));
        }
        Ok(Array { shape, dtype, fortran, bytes })
    }
}

/// What kind of value it is, for messages.
impl fmt::Display for Value<'_, '_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name may be long, and may hold anything.
        let short = |text: &str| text.chars().take(60).flat_map(char::escape_debug).collect::<String>();
        if let Some((module, name)) = self.global() {
            return write!(formatter, "{}.{}", short(module), short(name));
        }
        if let Some(call) = self.reduce() {
            return match call.callable.global() {
                Some((module, name)) => write!(formatter, "an object of {}.{}", short(module), short(name)),
                None => formatter.write_str("an object"),
            };
        }
        formatter.write_str(match self.node() {
            Node::None => "None",
            Node::Bool(_) => "a truth value",
            Node::Int(_) => "a whole number",
            Node::Float(_) => "a float",
            Node::Bytes(_) => "bytes",
            Node::Text(_) => "a text",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Set(_) => "a set",
            Node::Dict(_) => "a dictionary",
            Node::Global(..) | Node::Call(_) => "an object",
            Node::Persistent(_) => "an object outside the pickle",
        })
    }
}

impl fmt::Debug for Value<'_, '_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Value({self})")
    }
}

/// A type of NumPy with its byte order, and the bytes of a number of it.
fn numpy_type(dtype: Value<'_, '_>) -> Result<(String, usize), String> {
    let parts = dtype.reduce().and_then(|call| {
        let is_dtype = call.callable.global() == Some(("numpy", "dtype"));
        let name = call.arguments.items()?.next()?.text()?;
        // The state begins with a version and the byte order; what follows describes types with
        // fields or metadata.
        let order = call.state.and_then(|state| state.items()?.nth(1)?.text());
        is_dtype.then(|| (order.unwrap_or("|"), name))
    });
    let (order, name) = parts.ok_or_else(|| format!("expected a type of NumPy, got {dtype}"))?;
    let known = matches!(order, "<" | ">" | "|" | "=")
        && matches!(name.as_bytes().first(), Some(b'b' | b'i' | b'u' | b'f'));
    let size = name
        .get(1..)
        .and_then(|size| size.parse().ok())
        .filter(|size| known && matches!(size, 1 | 2 | 4 | 8));
    let unknown = || format!("expected an array of numbers, got one of the type {:?}", shortened(name));
    let size = size.ok_or_else(unknown)?;
    // NumPy writes the type of single bytes without an order, and "=" for that of the machine.
    let order = if order == "=" { "<" } else { order };
    Ok((format!("{order}{name}"), size))
}

fn shortened(text: &str) -> String {
    text.chars().take(20).collect()
}

/// The bytes of a text in Latin-1. None if it has other letters.
fn latin_1<'p>(text: &str) -> Option<Cow<'p, [u8]>> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect::<Option<_>>().map(Cow::Owned)
}

/// What reads a pickle: opcodes put values onto a stack and take them from it.
struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    nodes: Vec<Node<'b>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

type Step<T> = Result<T, Cow<'static, str>>;

impl<'b> Machine<'b> {
    /// Executes one opcode. The last one of a pickle gives its value.
    fn execute(&mut self, code: u8) -> Step<Option<Id>> {
        match code {
            b'.' => {
                let root = self.pop()?;
                return Ok(Some(root));
            }
            // The start of a protocol and of a frame.
            0x80 => {
                let [protocol] = self.take()?;
                if protocol > 5 {
                    return Err(format!("protocol {protocol} is unknown; 0 to 5 are known").into());
                }
            }
            0x95 => {
                let length = u64::from_le_bytes(self.take()?);
                if length > (self.bytes.len() - self.at) as u64 {
                    return Err(format!("a frame of {length} bytes does not end in the file").into());
                }
            }
            // Constants.
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            // Numbers.
            b'K' => {
                let [value] = self.take()?;
                self.push(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.take()?);
                self.push(Node::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.take()?);
                self.push(Node::Int(value.into()))?;
            }
            b'I' => {
                let node = match self.line()? {
                    "00" => Node::Bool(false),
                    "01" => Node::Bool(true),
                    text => Node::Int(whole_number(text)?),
                };
                self.push(node)?;
            }
            b'L' => {
                let line = self.line()?;
                let number = whole_number(line.strip_suffix('L').unwrap_or(line))?;
                self.push(Node::Int(number))?;
            }
            0x8a => {
                let [length] = self.take()?;
                self.push_long(length.into())?;
            }
            0x8b => {
                let length = self.length_i32()?;
                self.push_long(length)?;
            }
            b'F' => {
                let text = self.line()?;
                let value = text.parse().map_err(|_| format!("{:?} is no float", shortened(text)))?;
                self.push(Node::Float(value))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.take()?);
                self.push(Node::Float(value))?;
            }
            // Bytes; among them the str of Python 2.
            b'S' => {
                let text = self.line()?;
                let bytes = unquoted(text).ok_or("a string has no quotes, or an unknown escape")?;
                self.push(Node::Bytes(bytes))?;
            }
            b'U' | b'C' => {
                let [length] = self.take()?;
                self.push_bytes(length.into())?;
            }
            b'T' => {
                let length = self.length_i32()?;
                self.push_bytes(length)?;
            }
            b'B' => {
                let length = u32::from_le_bytes(self.take()?);
                self.push_bytes(length.into())?;
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(self.take()?);
                self.push_bytes(length)?;
            }
            // Texts.
            b'V' => {
                let line = self.line_of_bytes()?;
                let text = raw_unicode(line).ok_or("a text has an unknown escape")?;
                self.push(Node::Text(Cow::Owned(text)))?;
            }
            0x8c => {
                let [length] = self.take()?;
                self.push_text(length.into())?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.take()?);
                self.push_text(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.take()?);
                self.push_text(length)?;
            }
            // The stack.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // The mark itself, if it is uppermost.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // The memo.
            b'p' | b'g' => {
                let text = self.line()?;
                let key =
                    text.parse().map_err(|_| format!("{:?} is no place of the memo", shortened(text)))?;
                self.memorize_or_recall(code == b'p', key)?;
            }
            b'q' | b'h' => {
                let [key] = self.take()?;
                self.memorize_or_recall(code == b'q', key.into())?;
            }
            b'r' | b'j' => {
                let key = u32::from_le_bytes(self.take()?);
                self.memorize_or_recall(code == b'r', key.into())?;
            }
            0x94 => self.memorize_or_recall(true, self.memo.len() as u64)?,
            // Lists, tuples, dictionaries and sets.
            b']' => self.push(Node::List(Vec::new()))?,
            b')' => self.push(Node::Tuple(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            0x8f => self.push(Node::Set(Vec::new()))?,
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items))?;
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items))?;
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Dict(pairs(&items)?))?;
            }
            0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::Set(items))?;
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=code {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Node::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[(key, value)])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.insert(&pairs(&items)?)?;
            }
            // Names of functions and classes.
            b'c' => {
                self.push_global()?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let is_text = |id: Id| matches!(self.nodes[id as usize], Node::Text(_) | Node::Bytes(_));
                if !is_text(name) || !is_text(module) {
                    return Err("the name of a global is no text".into());
                }
                self.push(Node::Global(module, name))?;
            }
            // Calls, which are not executed.
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.push_call(callable, arguments)?;
            }
            0x92 => {
                let (named, unnamed, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.push(Node::Tuple(vec![unnamed, named]))?;
                let arguments = self.pop()?;
                self.push_call(callable, arguments)?;
            }
            b'o' => {
                let items = self.pop_to_mark()?;
                let (callable, arguments) = items.split_first().ok_or("there is no class")?;
                self.push(Node::Tuple(arguments.to_vec()))?;
                let arguments = self.pop()?;
                self.push_call(*callable, arguments)?;
            }
            b'i' => {
                let items = self.pop_to_mark()?;
                self.push_global()?;
                let callable = self.pop()?;
                self.push(Node::Tuple(items))?;
                let arguments = self.pop()?;
                self.push_call(callable, arguments)?;
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                match &mut self.nodes[object as usize] {
                    Node::Call(call) => call.state = Some(state),
                    _ => return Err("what gets a state is no object".into()),
                }
            }
            // Objects outside the pickle.
            b'P' => {
                let line = self.line()?;
                self.push(Node::Text(Cow::Borrowed(line)))?;
                let key = self.pop()?;
                self.push(Node::Persistent(key))?;
            }
            b'Q' => {
                let key = self.pop()?;
                self.push(Node::Persistent(key))?;
            }
            0x82..=0x84 => return Err("it needs Python's registry of extensions".into()),
            0x97 | 0x98 => return Err("it needs a buffer outside the pickle".into()),
            _ => return Err("there is no such opcode".into()),
        }
        Ok(None)
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.take_slice(N as u64)?;
        Ok(bytes.try_into().expect("as many bytes"))
    }

    fn take_slice(&mut self, length: u64) -> Step<&'b [u8]> {
        let rest = &self.bytes[self.at..];
        let bytes = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let bytes = bytes.ok_or_else(|| {
            format!("expected {length} bytes, got the {} of the rest of the file", rest.len())
        })?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn length_i32(&mut self) -> Step<u64> {
        let length = i32::from_le_bytes(self.take()?);
        u64::try_from(length).map_err(|_| format!("the length {length} is negative").into())
    }

    fn line_of_bytes(&mut self) -> Step<&'b [u8]> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("a line does not end")?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    fn line(&mut self) -> Step<&'b str> {
        std::str::from_utf8(self.line_of_bytes()?).map_err(|_| "a line is no text".into())
    }

    fn push(&mut self, node: Node<'b>) -> Step<()> {
        let id = Id::try_from(self.nodes.len()).map_err(|_| "there are too many values")?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    fn push_long(&mut self, length: u64) -> Step<()> {
        let bytes = self.take_slice(length)?;
        if bytes.len() > 16 {
            return Err(format!("a whole number of {} bytes; at most 16 are read", bytes.len()).into());
        }
        let is_negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut all = if is_negative { [0xff; 16] } else { [0; 16] };
        all[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i128::from_le_bytes(all)))
    }

    fn push_bytes(&mut self, length: u64) -> Step<()> {
        let bytes = self.take_slice(length)?;
        self.push(Node::Bytes(Cow::Borrowed(bytes)))
    }

    /// Python writes halves of surrogate pairs, too; these are replaced.
    fn push_text(&mut self, length: u64) -> Step<()> {
        let bytes = self.take_slice(length)?;
        self.push(Node::Text(String::from_utf8_lossy(bytes)))
    }

    fn push_global(&mut self) -> Step<()> {
        let [module, name] = [self.line()?, self.line()?];
        self.push(Node::Text(Cow::Borrowed(module)))?;
        self.push(Node::Text(Cow::Borrowed(name)))?;
        let (name, module) = (self.pop()?, self.pop()?);
        self.push(Node::Global(module, name))
    }

    fn push_call(&mut self, callable: Id, arguments: Id) -> Step<()> {
        let call = Call { callable, arguments, state: None, entries: Vec::new() };
        self.push(Node::Call(Box::new(call)))
    }

    /// The height of the stack that belongs to the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or_default()
    }

    fn top(&self) -> Step<Id> {
        let top = self.stack[self.floor()..].last();
        top.copied().ok_or_else(|| "it needs a value, and there is none".into())
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let floor = self.marks.pop().ok_or("it needs a mark, and there is none")?;
        Ok(self.stack.split_off(floor))
    }

    fn memorize_or_recall(&mut self, memorizes: bool, key: u64) -> Step<()> {
        if memorizes {
            let top = self.top()?;
            self.memo.insert(key, top);
        } else {
            let found = self.memo.get(&key).copied();
            let id = found.ok_or_else(|| format!("place {key} of the memo is empty"))?;
            self.stack.push(id);
        }
        Ok(())
    }

    fn extend(&mut self, new: &[Id]) -> Step<()> {
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::List(items) | Node::Set(items) => items.extend_from_slice(new),
            // Of no kind of file that is read here.
            Node::Call(_) => {}
            _ => return Err("what gets values is no list, set or object".into()),
        }
        Ok(())
    }

    fn insert(&mut self, new: &[(Id, Id)]) -> Step<()> {
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Dict(entries) => entries.extend_from_slice(new),
            Node::Call(call) => call.entries.extend_from_slice(new),
            _ => return Err("what gets keys is no dictionary or object".into()),
        }
        Ok(())
    }
}

/// Keys and values in turn.
fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks();
    match rest {
        [] => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err("a key has no value".into()),
    }
}

fn whole_number(text: &str) -> Step<i128> {
    text.trim()
        .parse()
        .map_err(|_| format!("{:?} is no whole number of at most 16 bytes", shortened(text)).into())
}

/// The bytes of a string in Python's notation. None if it has no quotes, or another escape.
fn unquoted(text: &str) -> Option<Cow<'_, [u8]>> {
    let text = text.trim_end();
    let inside = ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))?;
    if !inside.contains('\\') {
        return Some(Cow::Borrowed(inside.as_bytes()));
    }
    let mut bytes = Vec::with_capacity(inside.len());
    let mut rest = inside.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => u8::try_from(hexadecimal(&[rest.next()?, rest.next()?])?).ok()?,
                quoted @ (b'\\' | b'\'' | b'"') => quoted,
                _ => return None,
            },
            other => other,
        };
        bytes.push(byte);
    }
    Some(Cow::Owned(bytes))
}

/// A text in Latin-1, in which `\uXXXX` and `\UXXXXXXXX` stand for other letters.
fn raw_unicode(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((first, after)) = rest.split_first() {
        let digits = match (first, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(*first));
                rest = after;
                continue;
            }
        };
        let code = hexadecimal(after.get(1..=digits)?)?;
        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = &after[digits + 1..];
    }
    Some(text)
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0u32, |number, digit| Some(number.checked_mul(16)? + char::from(*digit).to_digit(16)?))
}

/// The name of an opcode in Python's `pickletools`.
fn opcode_name(code: u8) -> Cow<'static, str> {
    let found = NAMES.iter().find(|(known, _)| *known == code);
    found.map_or_else(|| format!("0x{code:02x}").into(), |(_, name)| Cow::Borrowed(*name))
}

const NAMES: [(u8, &str); 68] = [
    (b'(', "MARK"),
    (b')', "EMPTY_TUPLE"),
    (b'.', "STOP"),
    (b'0', "POP"),
    (b'1', "POP_MARK"),
    (b'2', "DUP"),
    (b'B', "BINBYTES"),
    (b'C', "SHORT_BINBYTES"),
    (b'F', "FLOAT"),
    (b'G', "BINFLOAT"),
    (b'I', "INT"),
    (b'J', "BININT"),
    (b'K', "BININT1"),
    (b'L', "LONG"),
    (b'M', "BININT2"),
    (b'N', "NONE"),
    (b'P', "PERSID"),
    (b'Q', "BINPERSID"),
    (b'R', "REDUCE"),
    (b'S', "STRING"),
    (b'T', "BINSTRING"),
    (b'U', "SHORT_BINSTRING"),
    (b'V', "UNICODE"),
    (b'X', "BINUNICODE"),
    (b']', "EMPTY_LIST"),
    (b'a', "APPEND"),
    (b'b', "BUILD"),
    (b'c', "GLOBAL"),
    (b'd', "DICT"),
    (b'e', "APPENDS"),
    (b'g', "GET"),
    (b'h', "BINGET"),
    (b'i', "INST"),
    (b'j', "LONG_BINGET"),
    (b'l', "LIST"),
    (b'o', "OBJ"),
    (b'p', "PUT"),
    (b'q', "BINPUT"),
    (b'r', "LONG_BINPUT"),
    (b's', "SETITEM"),
    (b't', "TUPLE"),
    (b'u', "SETITEMS"),
    (b'}', "EMPTY_DICT"),
    (0x80, "PROTO"),
    (0x81, "NEWOBJ"),
    (0x82, "EXT1"),
    (0x83, "EXT2"),
    (0x84, "EXT4"),
    (0x85, "TUPLE1"),
    (0x86, "TUPLE2"),
    (0x87, "TUPLE3"),
    (0x88, "NEWTRUE"),
    (0x89, "NEWFALSE"),
    (0x8a, "LONG1"),
    (0x8b, "LONG4"),
    (0x8c, "SHORT_BINUNICODE"),
    (0x8d, "BINUNICODE8"),
    (0x8e, "BINBYTES8"),
    (0x8f, "EMPTY_SET"),
    (0x90, "ADDITEMS"),
    (0x91, "FROZENSET"),
    (0x92, "NEWOBJ_EX"),
    (0x93, "STACK_GLOBAL"),
    (0x94, "MEMOIZE"),
    (0x95, "FRAME"),
    (0x96, "BYTEARRAY8"),
    (0x97, "NEXT_BUFFER"),
    (0x98, "READONLY_BUFFER"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fuzz;
    use std::fs;

    /// `pickle.dumps` of Python 3.13, protocols 0 to 5, of
    /// `[None, True, False, 0, 255, 65535, -1, 2**31-1, -2**31, 2**63, -2**100, 1.5, inf, b"",
    /// b"\x00\xff", "", "aé€😀", [], [1, [2]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {},
    /// {"a": 1, 2: "b"}, OrderedDict([("x", 1), ("y", 2)]), s, s]` with `s = [1, 2]`.
    const EACH_PROTOCOL: [&[u8]; 6] = [
        b"(lp0\nNaI01\naI00\naI0\naI255\naI65535\naI-1\naI2147483647\naI-2147483648\naL9223372036854775808\
        L\naL-1267650600228229401496703205376L\naF1.5\naFinf\nac__builtin__\nbytes\np1\n(tRp2\nac_codecs\
        \nencode\np3\n(V\\u0000\xff\np4\nVlatin1\np5\ntp6\nRp7\naV\np8\naVa\xe9\\u20ac\\U0001f600\np9\na\
        (lp10\na(lp11\nI1\na(lp12\nI2\naaa(ta(I1\ntp13\na(I1\nI2\ntp14\na(I1\nI2\nI3\ntp15\na(I1\nI2\nI3\
        \nI4\ntp16\na(dp17\na(dp18\nVa\np19\nI1\nsI2\nVb\np20\nsaccollections\nOrderedDict\np21\n(tRp22\
        \nVx\np23\nI1\nsVy\np24\nI2\nsa(lp25\nI1\naI2\naag25\na.",
        b"]q\0(NI01\nI00\nK\0K\xffM\xff\xffJ\xff\xff\xff\xffJ\xff\xff\xff\x7fJ\0\0\0\x80L92233720368547758\
        08L\nL-1267650600228229401496703205376L\nG?\xf8\0\0\0\0\0\0G\x7f\xf0\0\0\0\0\0\0c__builtin__\nby\
        tes\nq\x01)Rq\x02c_codecs\nencode\nq\x03(X\x03\0\0\0\0\xc3\xbfq\x04X\x06\0\0\0latin1q\x05tq\x06R\
        q\x07X\0\0\0\0q\x08X\n\0\0\0a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80q\t]q\n]q\x0b(K\x01]q\x0cK\x02a\
        e)(K\x01tq\r(K\x01K\x02tq\x0e(K\x01K\x02K\x03tq\x0f(K\x01K\x02K\x03K\x04tq\x10}q\x11}q\x12(X\x01\
        \0\0\0aq\x13K\x01K\x02X\x01\0\0\0bq\x14uccollections\nOrderedDict\nq\x15)Rq\x16(X\x01\0\0\0xq\
        \x17K\x01X\x01\0\0\0yq\x18K\x02u]q\x19(K\x01K\x02eh\x19e.",
        b"\x80\x02]q\0(N\x88\x89K\0K\xffM\xff\xffJ\xff\xff\xff\xffJ\xff\xff\xff\x7fJ\0\0\0\x80\x8a\t\0\0\0\
        \0\0\0\0\x80\0\x8a\r\0\0\0\0\0\0\0\0\0\0\0\0\xf0G?\xf8\0\0\0\0\0\0G\x7f\xf0\0\0\0\0\0\0c__builti\
        n__\nbytes\nq\x01)Rq\x02c_codecs\nencode\nq\x03X\x03\0\0\0\0\xc3\xbfq\x04X\x06\0\0\0latin1q\x05\
        \x86q\x06Rq\x07X\0\0\0\0q\x08X\n\0\0\0a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80q\t]q\n]q\x0b(K\x01]q\
        \x0cK\x02ae)K\x01\x85q\rK\x01K\x02\x86q\x0eK\x01K\x02K\x03\x87q\x0f(K\x01K\x02K\x03K\x04tq\x10}q\
        \x11}q\x12(X\x01\0\0\0aq\x13K\x01K\x02X\x01\0\0\0bq\x14uccollections\nOrderedDict\nq\x15)Rq\x16(\
        X\x01\0\0\0xq\x17K\x01X\x01\0\0\0yq\x18K\x02u]q\x19(K\x01K\x02eh\x19e.",
        b"\x80\x03]q\0(N\x88\x89K\0K\xffM\xff\xffJ\xff\xff\xff\xffJ\xff\xff\xff\x7fJ\0\0\0\x80\x8a\t\0\0\0\
        \0\0\0\0\x80\0\x8a\r\0\0\0\0\0\0\0\0\0\0\0\0\xf0G?\xf8\0\0\0\0\0\0G\x7f\xf0\0\0\0\0\0\0C\0q\x01C\
        \x02\0\xffq\x02X\0\0\0\0q\x03X\n\0\0\0a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80q\x04]q\x05]q\x06(K\
        \x01]q\x07K\x02ae)K\x01\x85q\x08K\x01K\x02\x86q\tK\x01K\x02K\x03\x87q\n(K\x01K\x02K\x03K\x04tq\
        \x0b}q\x0c}q\r(X\x01\0\0\0aq\x0eK\x01K\x02X\x01\0\0\0bq\x0fuccollections\nOrderedDict\nq\x10)Rq\
        \x11(X\x01\0\0\0xq\x12K\x01X\x01\0\0\0yq\x13K\x02u]q\x14(K\x01K\x02eh\x14e.",
        b"\x80\x04\x95\xd8\0\0\0\0\0\0\0]\x94(N\x88\x89K\0K\xffM\xff\xffJ\xff\xff\xff\xffJ\xff\xff\xff\x7f\
        J\0\0\0\x80\x8a\t\0\0\0\0\0\0\0\x80\0\x8a\r\0\0\0\0\0\0\0\0\0\0\0\0\xf0G?\xf8\0\0\0\0\0\0G\x7f\
        \xf0\0\0\0\0\0\0C\0\x94C\x02\0\xff\x94\x8c\0\x94\x8c\na\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x94]\
        \x94]\x94(K\x01]\x94K\x02ae)K\x01\x85\x94K\x01K\x02\x86\x94K\x01K\x02K\x03\x87\x94(K\x01K\x02K\
        \x03K\x04t\x94}\x94}\x94(\x8c\x01a\x94K\x01K\x02\x8c\x01b\x94u\x8c\x0bcollections\x94\x8c\x0bOrd\
        eredDict\x94\x93\x94)R\x94(\x8c\x01x\x94K\x01\x8c\x01y\x94K\x02u]\x94(K\x01K\x02eh\x16e.",
        b"\x80\x05\x95\xd8\0\0\0\0\0\0\0]\x94(N\x88\x89K\0K\xffM\xff\xffJ\xff\xff\xff\xffJ\xff\xff\xff\x7f\
        J\0\0\0\x80\x8a\t\0\0\0\0\0\0\0\x80\0\x8a\r\0\0\0\0\0\0\0\0\0\0\0\0\xf0G?\xf8\0\0\0\0\0\0G\x7f\
        \xf0\0\0\0\0\0\0C\0\x94C\x02\0\xff\x94\x8c\0\x94\x8c\na\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x94]\
        \x94]\x94(K\x01]\x94K\x02ae)K\x01\x85\x94K\x01K\x02\x86\x94K\x01K\x02K\x03\x87\x94(K\x01K\x02K\
        \x03K\x04t\x94}\x94}\x94(\x8c\x01a\x94K\x01K\x02\x8c\x01b\x94u\x8c\x0bcollections\x94\x8c\x0bOrd\
        eredDict\x94\x93\x94)R\x94(\x8c\x01x\x94K\x01\x8c\x01y\x94K\x02u]\x94(K\x01K\x02eh\x16e.",
    ];

    /// A batch of CIFAR as `cPickle.dumps(batch, 2)` of Python 2.7 writes it, with an array of 2 x 3 bytes.
    const CIFAR: &[u8] =
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(K\x06K\
        \teU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\0\x85q\tU\
        \x01b\x87Rq\n(K\x01\x8a\x01\x02\x8a\x01\x03\x86q\x0bcnumpy\ndtype\nq\x0cU\x02u1q\rK\0K\x01\x87q\
        \x0eRq\x0f(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x10b\x89U\x06\0\x01\x02\xfd\xfe\
        \xfftbU\tfilenamesq\x11]q\x12(U\x06a\xff.pngq\x13X\x02\0\0\0\xc3\xa9eu.";

    /// `pickle.dumps` of Python 2.7 of `[None, True, False, 3, -2**40, 2.5, "it's\n\0", "a\\b", u"é€\\", (1,),
    /// {"k": (1, 2)}, []]`.
    const PYTHON_2: &[u8] =
        b"(lp0\nNaI01\naI00\naI3\naI-1099511627776\naF2.5\naS\"it's\\n\\x00\"\np1\naS'a\\\\b'\np2\naV\xe9\
        \\u20ac\\u005c\np3\na(I1\ntp4\na(dp5\nS'k'\np6\n(I1\nI2\ntp7\nsa(lp8\na.";

    /// An object of an old class in Python 2.7, protocols 0 and 2.
    const OLD_CLASS: &[u8] =
        b"(i__main__\nOld\np0\n(dp1\nS'x'\np2\nI1\nsb.\x80\x02(c__main__\nOld\nq\0oq\x01}q\x02U\x01xq\x03K\
        \x01sb.";

    /// `np.arange(6, dtype="<i4").reshape(2, 3)` of NumPy 2.4, protocols 0 to 5.
    const ARRAYS: [&[u8]; 6] = [
        b"cnumpy._core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nc_codecs\nencode\np3\
        \n(Vb\np4\nVlatin1\np5\ntp6\nRp7\ntp8\nRp9\n(I1\n(I2\nI3\ntp10\ncnumpy\ndtype\np11\n(Vi4\np12\nI\
        00\nI01\ntp13\nRp14\n(I3\nV<\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\ng3\n(V\\u0000\\u0000\\u0000\\u00\
        00\x01\\u0000\\u0000\\u0000\x02\\u0000\\u0000\\u0000\x03\\u0000\\u0000\\u0000\x04\\u0000\\u0000\
        \\u0000\x05\\u0000\\u0000\\u0000\np17\ng5\ntp18\nRp19\ntp20\nb.",
        b"cnumpy._core.multiarray\n_reconstruct\nq\0(cnumpy\nndarray\nq\x01(K\0tq\x02c_codecs\nencode\nq\
        \x03(X\x01\0\0\0bq\x04X\x06\0\0\0latin1q\x05tq\x06Rq\x07tq\x08Rq\t(K\x01(K\x02K\x03tq\ncnumpy\nd\
        type\nq\x0b(X\x02\0\0\0i4q\x0cI00\nI01\ntq\rRq\x0e(K\x03X\x01\0\0\0<q\x0fNNNJ\xff\xff\xff\xffJ\
        \xff\xff\xff\xffK\0tq\x10bI00\nh\x03(X\x18\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\
        \x05\0\0\0q\x11h\x05tq\x12Rq\x13tq\x14b.",
        b"\x80\x02cnumpy._core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85q\x02c_codecs\nen\
        code\nq\x03X\x01\0\0\0bq\x04X\x06\0\0\0latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01K\x02K\x03\
        \x86q\ncnumpy\ndtype\nq\x0bX\x02\0\0\0i4q\x0c\x89\x88\x87q\rRq\x0e(K\x03X\x01\0\0\0<q\x0fNNNJ\
        \xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x10b\x89h\x03X\x18\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\
        \0\0\0\x04\0\0\0\x05\0\0\0q\x11h\x05\x86q\x12Rq\x13tq\x14b.",
        b"\x80\x03cnumpy._core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85q\x02C\x01bq\x03\
        \x87q\x04Rq\x05(K\x01K\x02K\x03\x86q\x06cnumpy\ndtype\nq\x07X\x02\0\0\0i4q\x08\x89\x88\x87q\tRq\
        \n(K\x03X\x01\0\0\0<q\x0bNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x0cb\x89C\x18\0\0\0\0\x01\0\
        \0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x05\0\0\0q\rtq\x0eb.",
        b"\x80\x04\x95\xa3\0\0\0\0\0\0\0\x8c\x16numpy._core.multiarray\x94\x8c\x0c_reconstruct\x94\x93\x94\
        \x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\0\x85\x94C\x01b\x94\x87\x94R\x94(K\x01K\x02K\x03\
        \x86\x94h\x03\x8c\x05dtype\x94\x93\x94\x8c\x02i4\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\
        \xff\xff\xff\xffJ\xff\xff\xff\xffK\0t\x94b\x89C\x18\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\
        \0\0\x05\0\0\0\x94t\x94b.",
        b"\x80\x05\x95\x8e\0\0\0\0\0\0\0\x8c\x13numpy._core.numeric\x94\x8c\x0b_frombuffer\x94\x93\x94(\
        \x96\x18\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x05\0\0\0\x94\x8c\x05nump\
        y\x94\x8c\x05dtype\x94\x93\x94\x8c\x02i4\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\
        \xff\xffJ\xff\xff\xff\xffK\0t\x94bK\x02K\x03\x86\x94\x8c\x01C\x94t\x94R\x94.",
    ];

    /// The same with `order="F"`, protocol 5.
    const ARRAY_BY_COLUMNS: &[u8] =
        b"\x80\x05\x95\x8e\0\0\0\0\0\0\0\x8c\x13numpy._core.numeric\x94\x8c\x0b_frombuffer\x94\x93\x94(\
        \x96\x18\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\x01\0\0\0\x04\0\0\0\x02\0\0\0\x05\0\0\0\x94\x8c\x05nump\
        y\x94\x8c\x05dtype\x94\x93\x94\x8c\x02i4\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\
        \xff\xffJ\xff\xff\xff\xffK\0t\x94bK\x02K\x03\x86\x94\x8c\x01F\x94t\x94R\x94.";

    /// The same as `>f8`, protocol 2.
    const ARRAY_BIG_ENDIAN: &[u8] =
        b"\x80\x02cnumpy._core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85q\x02c_codecs\nen\
        code\nq\x03X\x01\0\0\0bq\x04X\x06\0\0\0latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01K\x02K\x03\
        \x86q\ncnumpy\ndtype\nq\x0bX\x02\0\0\0f8q\x0c\x89\x88\x87q\rRq\x0e(K\x03X\x01\0\0\0>q\x0fNNNJ\
        \xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x10b\x89h\x03X1\0\0\0\0\0\0\0\0\0\0\0?\xc3\xb0\0\0\0\0\0\
        \0@\0\0\0\0\0\0\0@\x08\0\0\0\0\0\0@\x10\0\0\0\0\0\0@\x14\0\0\0\0\0\0q\x11h\x05\x86q\x12Rq\x13tq\
        \x14b.";

    /// An array of objects.
    const ARRAY_OF_OBJECTS: &[u8] =
        b"\x80\x02cnumpy._core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85q\x02c_codecs\nen\
        code\nq\x03X\x01\0\0\0bq\x04X\x06\0\0\0latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01K\x02\x85q\n\
        cnumpy\ndtype\nq\x0bX\x02\0\0\0O8q\x0c\x89\x88\x87q\rRq\x0e(K\x03X\x01\0\0\0|q\x0fNNNJ\xff\xff\
        \xff\xffJ\xff\xff\xff\xffK?tq\x10b\x89]q\x11(NX\x01\0\0\0xq\x12etq\x13b.";

    /// `[bytearray(b"ab\xff"), bytearray(), b""]`, protocol 2.
    const BYTE_ARRAYS_2: &[u8] =
        b"\x80\x02]q\0(c__builtin__\nbytearray\nq\x01c_codecs\nencode\nq\x02X\x04\0\0\0ab\xc3\xbfq\x03X\
        \x06\0\0\0latin1q\x04\x86q\x05Rq\x06\x85q\x07Rq\x08h\x01)Rq\tc__builtin__\nbytes\nq\n)Rq\x0be.";

    /// `[bytearray(b"ab\xff"), bytearray()]`, protocol 3.
    const BYTE_ARRAYS_3: &[u8] =
        b"\x80\x03]q\0(cbuiltins\nbytearray\nq\x01C\x03ab\xffq\x02\x85q\x03Rq\x04h\x01)Rq\x05e.";

    /// The same, protocol 5.
    const BYTE_ARRAYS_5: &[u8] =
        b"\x80\x05\x95\x1c\0\0\0\0\0\0\0]\x94(\x96\x03\0\0\0\0\0\0\0ab\xff\x94\x96\0\0\0\0\0\0\0\0\x94e.";

    /// `[{1}, frozenset([2])]`, protocol 4.
    const SETS: &[u8] = b"\x80\x04\x95\x10\0\0\0\0\0\0\0]\x94(\x8f\x94(K\x01\x90(K\x02\x91\x94e.";

    /// A list of an object outside the pickle, protocols 0, 2 and 4.
    const PERSISTENT: [&[u8]; 3] = [
        b"(lp0\nPk\na.",
        b"\x80\x02]q\0X\x07\0\0\0storageq\x01K\x05\x86q\x02Qa.",
        b"\x80\x04\x95\x13\0\0\0\0\0\0\0]\x94\x8c\x07storage\x94K\x05\x86\x94Qa.",
    ];

    /// An object that calls `os.system("touch /tmp/owned")`, protocols 0, 2 and 4.
    const HOSTILE: [&[u8]; 3] = [
        b"cposix\nsystem\np0\n(Vtouch /tmp/owned\np1\ntp2\nRp3\n.",
        b"\x80\x02cposix\nsystem\nq\0X\x10\0\0\0touch /tmp/ownedq\x01\x85q\x02Rq\x03.",
        b"\x80\x04\x95+\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x10touch /tmp/owned\
        \x94\x85\x94R\x94.",
    ];

    /// A list that contains itself.
    const LOOP: &[u8] = b"\x80\x02]q\0h\0a.";

    fn read(bytes: &[u8]) -> Pickle<'_> {
        Pickle::read(bytes).unwrap_or_else(|fault| panic!("{fault}: {}", bytes.escape_ascii()))
    }

    fn refused(bytes: &[u8]) -> String {
        Pickle::read(bytes).expect_err("refused").to_string()
    }

    /// A value as Python would write it, for comparisons.
    fn written(value: Value<'_, '_>, depth: usize) -> String {
        if depth == 0 {
            return "...".to_owned();
        }
        let inside = |value| written(value, depth - 1);
        let list = |items: &[Id]| {
            items.iter().map(|id| inside(value.pickle.value(*id))).collect::<Vec<_>>().join(", ")
        };
        if let Some(bytes) = value.bytes() {
            return format!("b\"{}\"", bytes.escape_ascii());
        }
        if let Some(entries) = value.entries() {
            let entries = entries.map(|(key, value)| format!("{}: {}", inside(key), inside(value)));
            return format!("{{{}}}", entries.collect::<Vec<_>>().join(", "));
        }
        match value.node() {
            Node::None => "None".to_owned(),
            Node::Bool(value) => value.to_string(),
            Node::Int(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            Node::Text(text) => format!("{text:?}"),
            Node::List(items) => format!("[{}]", list(items)),
            Node::Tuple(items) => format!("({})", list(items)),
            Node::Set(items) => format!("set({})", list(items)),
            _ => value.to_string(),
        }
    }

    #[test]
    fn each_protocol_gives_the_same_values() {
        let expected = "[None, true, false, 0, 255, 65535, -1, 2147483647, -2147483648, \
            9223372036854775808, -1267650600228229401496703205376, 1.5, inf, b\"\", b\"\\x00\\xff\", \
            \"\", \"aé€😀\", [], [1, [2]], (), (1), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, \
            {\"a\": 1, 2: \"b\"}, {\"x\": 1, \"y\": 2}, [1, 2], [1, 2]]";
        for bytes in EACH_PROTOCOL {
            let pickle = read(bytes);
            assert_eq!(written(pickle.root(), 9), expected);
            assert_eq!(pickle.length(), bytes.len());
            // The same list twice.
            let items: Vec<_> = pickle.root().items().expect("a list").collect();
            assert_eq!(items[items.len() - 1].identity(), items[items.len() - 2].identity());
        }
    }

    #[test]
    fn python_2_is_read() {
        let pickle = read(PYTHON_2);
        assert_eq!(
            written(pickle.root(), 9),
            "[None, true, false, 3, -1099511627776, 2.5, b\"it\\'s\\n\\x00\", b\"a\\\\b\", \"é€\\\\\", (1), \
             {b\"k\": (1, 2)}, []]"
        );
        let (first, length) = (read(OLD_CLASS), read(OLD_CLASS).length());
        for pickle in [first, read(&OLD_CLASS[length..])] {
            let call = pickle.root().reduce().expect("an object");
            assert_eq!(call.callable.global(), Some(("__main__", "Old")));
            assert_eq!(call.arguments.items().expect("a tuple").len(), 0);
            assert_eq!(call.state.and_then(|state| state.get("x")?.integer::<u8>()), Some(1));
        }
    }

    #[test]
    fn a_batch_of_cifar_is_read() {
        let pickle = read(CIFAR);
        let array = pickle.root().get("data").expect("present").numpy_array().expect("an array");
        assert_eq!(
            (array.shape.as_slice(), array.dtype.as_str(), array.fortran),
            (&[2, 3][..], "|u1", false)
        );
        assert_eq!(&*array.bytes, [0, 1, 2, 253, 254, 255]);
        assert!(matches!(array.bytes, Cow::Borrowed(_)), "not copied");
        let labels = pickle.root().get("labels").expect("present").items().expect("a list");
        assert_eq!(labels.map(|label| label.integer()).collect::<Option<Vec<u8>>>(), Some(vec![6, 9]));
        assert!(pickle.root().get("other").is_none());
    }

    #[test]
    fn arrays_of_each_protocol_are_read() {
        let numbers: Vec<u8> = (0..6i32).flat_map(i32::to_le_bytes).collect();
        for bytes in ARRAYS {
            let pickle = read(bytes);
            let array = pickle.root().numpy_array().expect("an array");
            let expected =
                Array { shape: vec![2, 3], dtype: "<i4".into(), fortran: false, bytes: (&*numbers).into() };
            assert_eq!(array, expected);
        }
        let by_columns: Vec<u8> =
            [0, 3, 1, 4, 2, 5i32].iter().flat_map(|value| value.to_le_bytes()).collect();
        let pickle = read(ARRAY_BY_COLUMNS);
        let array = pickle.root().numpy_array().expect("an array");
        // Protocol 5 writes the bytes as they lie, and names the order.
        assert_eq!((&*array.bytes, array.fortran, array.shape), (&*by_columns, true, vec![2, 3]));
        let pickle = read(ARRAY_BIG_ENDIAN);
        let array = pickle.root().numpy_array().expect("an array");
        assert_eq!((array.dtype.as_str(), &array.bytes[8..16]), (">f8", &1f64.to_be_bytes()[..]));
    }

    #[test]
    fn what_is_no_array_of_numbers_is_refused() {
        let why = |bytes: &[u8]| read(bytes).root().numpy_array().expect_err("refused");
        assert_eq!(why(b"K\x01."), "expected an array of NumPy, got a whole number");
        assert!(why(ARRAY_OF_OBJECTS).contains("one of the type \"O8\""), "{}", why(ARRAY_OF_OBJECTS));
        let shorter = CIFAR.to_vec();
        let place =
            shorter.windows(3).position(|bytes| bytes == b"\x8a\x01\x03").expect("the number of columns");
        let mut wider = shorter;
        wider[place + 2] = 4;
        let pickle = read(&wider);
        let why = pickle.root().get("data").expect("present").numpy_array().expect_err("refused");
        assert_eq!(why, "an array of shape [2, 4] and type |u1 does not have 6 bytes");
    }

    #[test]
    fn byte_arrays_and_sets_are_read() {
        assert_eq!(written(read(BYTE_ARRAYS_2).root(), 9), "[b\"ab\\xff\", b\"\", b\"\"]");
        for bytes in [BYTE_ARRAYS_3, BYTE_ARRAYS_5] {
            assert_eq!(written(read(bytes).root(), 9), "[b\"ab\\xff\", b\"\"]");
        }
        assert_eq!(written(read(SETS).root(), 9), "[set(1), set(2)]");
    }

    #[test]
    fn objects_outside_keep_what_they_are_known_by() {
        for bytes in PERSISTENT {
            let pickle = read(bytes);
            let item = pickle.root().items().and_then(|mut items| items.next()).expect("an item");
            let key = item.persistent().expect("outside");
            let text = key.text().or_else(|| key.tuple().and_then(|[name, _]: [_; 2]| name.text()));
            assert!(matches!(text, Some("k" | "storage")), "{text:?}");
        }
    }

    #[test]
    fn nothing_is_executed() {
        for bytes in HOSTILE {
            let pickle = read(bytes);
            let call = pickle.root().reduce().expect("a call");
            assert_eq!(call.callable.global(), Some(("posix", "system")));
            let command = call.arguments.items().and_then(|mut arguments| arguments.next()?.text());
            assert_eq!(command, Some("touch /tmp/owned"));
            assert_eq!(pickle.root().to_string(), "an object of posix.system");
        }
        assert!(fs::metadata("/tmp/owned").is_err());
    }

    #[test]
    fn a_list_may_contain_itself() {
        assert_eq!(written(read(LOOP).root(), 4), "[[[[...]]]]");
    }

    #[test]
    fn deep_and_wide_pickles_take_little() {
        // A hundred thousand lists in each other: Python's own reader does not recurse either.
        let deep = [vec![b']'; 100_000], vec![b'a'; 99_999], vec![b'.']].concat();
        assert!(read(&deep).root().items().is_some());
        // Each list holds the one before ten times: 10^30 leaves as a tree.
        let mut wide = b"]q\x00".to_vec();
        for level in 0..30u8 {
            wide.extend(b"](");
            (0..10).for_each(|_| wide.extend([b'h', level]));
            wide.extend([b'e', b'q', level + 1]);
        }
        wide.push(b'.');
        let memory = allocation_counter::measure(|| drop(read(&wide)));
        assert!(memory.bytes_max < 64 * wide.len() as u64, "{} bytes", memory.bytes_max);
    }

    #[test]
    fn errors_name_place_and_opcode() {
        for (bytes, expected) in [
            (&b""[..], "at byte 0: the file ends before the pickle does"),
            (b"N", "at byte 1: the file ends before the pickle does"),
            (b".", "at byte 0, opcode STOP: it needs a value, and there is none"),
            (
                b"NX\xff\xff\xff\xffab",
                "at byte 1, opcode BINUNICODE: expected 4294967295 bytes, got the 2 of",
            ),
            (
                b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
                "opcode BINBYTES8: expected 18446744073709551615 bytes",
            ),
            (b"T\xff\xff\xff\xff.", "opcode BINSTRING: the length -1 is negative"),
            (b"\x8b\x00\x00\x00\x80.", "opcode LONG4: the length -2147483648 is negative"),
            (b"\x8a\x11aaaaaaaaaaaaaaaaa.", "opcode LONG1: a whole number of 17 bytes"),
            (b"\x80\x06N.", "opcode PROTO: protocol 6 is unknown"),
            (b"\x95\x09\0\0\0\0\0\0\0N.", "opcode FRAME: a frame of 9 bytes does not end in the file"),
            (b"h\x05.", "opcode BINGET: place 5 of the memo is empty"),
            (b"e.", "opcode APPENDS: it needs a mark"),
            (b"K\x01K\x02a.", "opcode APPEND: what gets values is no list"),
            (b"}(K\x01u.", "opcode SETITEMS: a key has no value"),
            (b"N}b.", "opcode BUILD: what gets a state is no object"),
            (b"K\x01K\x01\x93.", "opcode STACK_GLOBAL: the name of a global is no text"),
            (b"N(0.", ""),
            (b"\x82\x01.", "opcode EXT1: it needs Python's registry of extensions"),
            (b"\x97.", "opcode NEXT_BUFFER: it needs a buffer outside the pickle"),
            (b"\xff.", "opcode 0xff: there is no such opcode"),
            (b"S'a\\q'\n.", "opcode STRING: a string has no quotes, or an unknown escape"),
            (b"I12x\n.", "opcode INT: \"12x\" is no whole number"),
            (b"Fx\n.", "opcode FLOAT: \"x\" is no float"),
            (b"V\\u12\n.", "opcode UNICODE: a text has an unknown escape"),
        ] {
            if expected.is_empty() {
                read(bytes);
            } else {
                assert!(refused(bytes).contains(expected), "{}", refused(bytes));
            }
        }
    }

    #[test]
    fn every_part_of_a_pickle_is_refused() {
        for bytes in EACH_PROTOCOL.iter().chain(&ARRAYS) {
            (0..bytes.len()).for_each(|length| drop(refused(&bytes[..length])));
        }
    }

    #[test]
    fn fuzz_pickles_may_be_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let valid: Vec<_> = [&EACH_PROTOCOL[..], &ARRAYS, &PERSISTENT, &HOSTILE]
            .concat()
            .into_iter()
            .chain([CIFAR, PYTHON_2, OLD_CLASS, ARRAY_BY_COLUMNS, BYTE_ARRAYS_2, BYTE_ARRAYS_5, SETS, LOOP])
            .map(<[u8]>::to_vec)
            .collect();
        fuzz::withstands(&valid, &folder.path().join("mine.pickle"), fuzz::USUAL, |path| {
            let bytes = fs::read(path).expect("readable");
            let pickle =
                Pickle::read(&bytes).map_err(|fault| crate::Error::file("understand", path, fault))?;
            // Whatever is asked of the value, nothing panics.
            let _ = (written(pickle.root(), 3).len(), pickle.root().numpy_array());
            let data = pickle.root().get("data").map(Value::numpy_array);
            let _ = (data, pickle.root().bytes(), pickle.root().to_string());
            Ok(())
        });
    }
}
