//! How deep the kernel programs' stacks become: Linux 6.1 refuses what later kernels take, and only a
//! machine that runs it would tell.
//!
//! `check_max_stack_depth` in its `kernel/bpf/verifier.c`: each function's stack is rounded up to 32
//! bytes, 32 at least, and a chain of calls has [`MOST`] bytes together.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};

use super::{OBJECT, TRACED_OBJECT};

/// `MAX_BPF_STACK` of `include/linux/filter.h`.
const MOST: u64 = 512;
/// What a function's stack is rounded up to.
const STEP: u64 = 32;

/// An instruction's opcodes (`Documentation/bpf/standardization/instruction-set.rst`).
const CALL: u8 = 0x85;
const ADD_CONSTANT: u8 = 0x07;
const MOVE: u8 = 0xbf;
const WIDE: u8 = 0x18;
/// Its classes: the lowest three bits.
const LOAD: u8 = 1;
const STORE_CONSTANT: u8 = 2;
const STORE: u8 = 3;
/// A call's source register when it is of a function of the object's own (`BPF_PSEUDO_CALL`).
const OWN: u8 = 1;
/// The register that points to the end of the stack.
const FRAME: u8 = 10;

/// Where a function is: the section, and the address there.
type Place = (usize, u64);

#[derive(Default)]
struct Function {
    name: String,
    /// Bytes of stack that it uses itself.
    own: u64,
    calls: BTreeSet<Place>,
}

fn functions(object: &[u8]) -> BTreeMap<Place, Function> {
    let file = object::File::parse(object).expect("an ELF file");
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let index = symbol.section_index().expect("a function is in a section");
        let section = file.section_by_index(index).expect("it is there");
        let code = section.data().expect("it has code");
        let relocations: BTreeMap<_, _> = section.relocations().collect();
        let (first, size) = (symbol.address(), symbol.size());
        let mut function =
            Function { name: symbol.name().expect("a name").to_owned(), ..Function::default() };
        let mut at = first;
        let mut copied_to = None;
        while at < first + size {
            let bytes: [u8; 8] = code[at as usize..][..8].try_into().expect("eight bytes");
            let [opcode, registers, low, high, constant @ ..] = bytes;
            let (destination, source) = (registers & 0xf, registers >> 4);
            let offset = i64::from(i16::from_le_bytes([low, high]));
            let constant = i64::from(i32::from_le_bytes(constant));
            let below = match opcode & 7 {
                LOAD if source == FRAME => -offset,
                STORE | STORE_CONSTANT if destination == FRAME => -offset,
                _ if opcode == ADD_CONSTANT && copied_to == Some(destination) => -constant,
                _ => 0,
            };
            function.own = function.own.max(below.try_into().unwrap_or(0));
            copied_to = (opcode == MOVE && source == FRAME).then_some(destination);
            if opcode == CALL && source == OWN {
                let called = match relocations.get(&at).map(object::Relocation::target) {
                    Some(RelocationTarget::Symbol(symbol)) => {
                        let symbol = file.symbol_by_index(symbol).expect("it is there");
                        let section = symbol.section_index().expect("it is in a section").0;
                        let inside = if symbol.kind() == SymbolKind::Section {
                            (constant + 1) * 8
                        } else {
                            0
                        };
                        (section, symbol.address().wrapping_add_signed(inside))
                    }
                    _ => (index.0, (at + 8).wrapping_add_signed(constant * 8)),
                };
                function.calls.insert(called);
            }
            at += if opcode == WIDE { 16 } else { 8 };
        }
        functions.insert((index.0, first), function);
    }
    functions
}

/// The deepest chain of calls that begins with this one, and its bytes.
fn deepest(functions: &BTreeMap<Place, Function>, place: Place) -> (u64, Vec<String>) {
    let function = functions
        .get(&place)
        .unwrap_or_else(|| panic!("a call of {place:?}, where no function is"));
    let inner =
        function.calls.iter().map(|called| deepest(functions, *called)).max().unwrap_or_default();
    let own = function.own.max(1).next_multiple_of(STEP);
    let named = format!("{} {own}", function.name);
    (inner.0 + own, iter::once(named).chain(inner.1).collect())
}

#[test]
fn the_stacks_of_every_chain_of_calls_fit_into_linux_6_1() {
    for (object, program) in [(OBJECT, "sluice"), (TRACED_OBJECT, "traced")] {
        let functions = functions(object);
        let called: usize = functions.values().map(|function| function.calls.len()).sum();
        assert!(called > 5, "{program} calls functions of its own");
        for (place, function) in &functions {
            let (bytes, chain) = deepest(&functions, *place);
            assert!(
                bytes <= MOST,
                "{program}, {}: {bytes} bytes: {}",
                function.name,
                chain.join(" > ")
            );
        }
        let of_program = functions.iter().find(|(_, function)| function.name == program);
        let (place, _) = of_program.expect("the program is a function");
        let (bytes, chain) = deepest(&functions, *place);
        println!("{program}: {bytes} of {MOST} bytes: {}", chain.join(" > "));
    }
}
