//! Programs of a few instructions, written out: what the hooks are compared with must do nothing that is not seen here.

use crate::bpf::instruction;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
const DATA: u8 = 7;
const END: u8 = 8;
const STACK: u8 = 10;

/// Of `struct __sk_buff`.
const SKB_DATA: i16 = 76;
const SKB_DATA_END: i16 = 80;

const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const REDIRECT_PEER: i32 = 155;
const TAIL_CALL: i32 = 12;
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;

const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;
const DOUBLE: u8 = 0x18;

/// Where things lie in the packets of a family.
pub struct Layout {
    pub ipv6: bool,
    pub src: i16,
    pub dst: i16,
    pub ports: i16,
    /// What every packet is long, and its last four bytes are the state of the chance by which the next is chosen.
    pub len: i16,
}

pub const V4: Layout = Layout { ipv6: false, src: 26, dst: 30, ports: 34, len: 102 };
pub const V6: Layout = Layout { ipv6: true, src: 22, dst: 38, ports: 54, len: 122 };

#[derive(Default)]
struct Code {
    instructions: Vec<u64>,
    to_end: Vec<usize>,
}

impl Code {
    fn put(&mut self, code: u8, dst: u8, src: u8, offset: i16, value: i32) -> &mut Self {
        self.instructions.push(instruction(code, dst, src, offset, value));
        self
    }

    fn load(&mut self, size: u8, dst: u8, base: u8, offset: i16) -> &mut Self {
        self.put(0x61 | size, dst, base, offset, 0)
    }

    fn store(&mut self, size: u8, base: u8, offset: i16, src: u8) -> &mut Self {
        self.put(0x63 | size, base, src, offset, 0)
    }

    fn set(&mut self, dst: u8, value: i32) -> &mut Self {
        self.put(0xb7, dst, 0, 0, value)
    }

    fn copy(&mut self, dst: u8, src: u8) -> &mut Self {
        self.put(0xbf, dst, src, 0, 0)
    }

    fn add(&mut self, dst: u8, value: i32) -> &mut Self {
        self.put(0x07, dst, 0, 0, value)
    }

    fn and(&mut self, dst: u8, value: i32) -> &mut Self {
        self.put(0x57, dst, 0, 0, value)
    }

    fn shift_left(&mut self, dst: u8, bits: i32) -> &mut Self {
        self.put(0x67, dst, 0, 0, bits)
    }

    fn shift_right(&mut self, dst: u8, bits: i32) -> &mut Self {
        self.put(0x77, dst, 0, 0, bits)
    }

    fn big_endian(&mut self, dst: u8, bits: i32) -> &mut Self {
        self.put(0xdc, dst, 0, 0, bits)
    }

    fn wide(&mut self, dst: u8, kind: u8, low: i32, high: i32) -> &mut Self {
        self.put(0x18, dst, kind, 0, low).put(0, 0, 0, 0, high)
    }

    fn call(&mut self, helper: i32) -> &mut Self {
        self.put(0x85, 0, 0, 0, helper)
    }

    /// The packet between `DATA` and `END`; ends with what `R0` holds where it is shorter than `len`.
    fn packet(&mut self, len: i16) -> &mut Self {
        self.copy(CONTEXT, R1).load(WORD, DATA, CONTEXT, SKB_DATA).load(WORD, END, CONTEXT, SKB_DATA_END);
        self.set(R0, -100).copy(R2, DATA).add(R2, i32::from(len));
        self.to_end.push(self.instructions.len());
        self.put(0x2d, R2, END, 0, 0)
    }

    fn end(&mut self) -> Vec<u64> {
        let end = self.instructions.len();
        for at in &self.to_end {
            self.instructions[*at] |= ((end - at - 1) as u64) << 16;
        }
        self.put(0x95, 0, 0, 0, 0).instructions.clone()
    }

    /// Where it goes is told by [`Code::land`].
    fn jump(&mut self, code: u8, dst: u8, value: i32) -> usize {
        self.put(code, dst, 0, 0, value);
        self.instructions.len() - 1
    }

    /// The next instruction is where that jump goes.
    fn land(&mut self, jump: usize) -> &mut Self {
        self.instructions[jump] |= ((self.instructions.len() - jump - 1) as u64) << 16;
        self
    }

    /// An address of the packet to the stack, as maps have it.
    fn address(&mut self, layout: &Layout, from: i16, to: i16) -> &mut Self {
        if layout.ipv6 {
            self.load(DOUBLE, R1, DATA, from).store(DOUBLE, STACK, to, R1);
            return self.load(DOUBLE, R1, DATA, from + 8).store(DOUBLE, STACK, to + 8, R1);
        }
        self.set(R1, 0).store(DOUBLE, STACK, to, R1);
        self.load(WORD, R1, DATA, from).shift_left(R1, 32);
        self.wide(R2, 0, 0xffff_0000_u32 as i32, 0).put(0x4f, R1, R2, 0, 0);
        self.store(DOUBLE, STACK, to + 8, R1)
    }

    fn port(&mut self, from: i16, to: i16) -> &mut Self {
        self.load(HALF, R1, DATA, from).big_endian(R1, 16).store(HALF, STACK, to, R1)
    }

    /// Looks up the key on the stack; ends with 0 where it is not found.
    fn look_up(&mut self, map: &impl AsFd, key: i16) -> &mut Self {
        self.wide(R1, PSEUDO_MAP_FD, map.as_fd().as_raw_fd(), 0);
        self.copy(R2, STACK).add(R2, i32::from(key)).call(MAP_LOOKUP_ELEM);
        self.to_end.push(self.instructions.len());
        self.put(0x15, R0, 0, 0, 0)
    }

    /// The key of a connection to the stack; the packet's source is the lower address (`sends`) or its destination.
    fn connection(&mut self, layout: &Layout, sends: bool, proto: u8) -> &mut Self {
        let (low, high) = if sends { (layout.src, layout.dst) } else { (layout.dst, layout.src) };
        let (low_port, high_port) =
            if sends { (layout.ports, layout.ports + 2) } else { (layout.ports + 2, layout.ports) };
        self.address(layout, low, -40).address(layout, high, -24);
        self.port(low_port, -8).port(high_port, -6).set(R1, i32::from(proto)).store(WORD, STACK, -4, R1)
    }
}

/// Which packets a run makes of the one it is given.
pub struct Vary {
    /// How many, each as likely as any other.
    pub packets: u32,
    /// That many to one address, by their port (or by the two bytes at `port`); a power of two.
    pub ports_bits: u32,
    /// Where the two bytes are that vary with the port, and by which of their bits they do.
    pub port: i16,
    pub port_shift: i32,
    pub first_port: u16,
    /// Of the last four bytes of the address that varies.
    pub address: i16,
    pub first_address: u32,
}

/// Of an entry of [`tracker`]: the key is a connection's, and the value as long as one's.
pub const TRACKED: (u32, u32) = (40, 104);

/// The least that keeps TCP connections and forwards: an entry for each, made by its first packet, counted in by each and removed
/// when both ends have closed; a hop less and the other link's addresses; into the far end of interface `to`. It asks nobody, ages
/// and evicts nothing, and knows one pod at either end. `low`: the packet's source is the lower address.
pub fn tracker(low: bool, map: &impl AsFd, to: u32, macs: [u32; 3]) -> Vec<u64> {
    const LAYOUT: Layout = Layout { len: 54, ..V4 };
    const VALUE: i16 = -144;
    const JUMP_SET: u8 = 0x45;
    const JUMP_NOT: u8 = 0x55;
    const JUMP_EQUAL: u8 = 0x15;
    const GOTO: u8 = 0x05;
    const FLAGS: u8 = 9;
    let code = &mut Code::default();
    code.packet(LAYOUT.len).load(BYTE, FLAGS, DATA, 47);
    code.connection(&LAYOUT, low, 6).wide(R1, PSEUDO_MAP_FD, map.as_fd().as_raw_fd(), 0);
    code.copy(R2, STACK).add(R2, -40).call(MAP_LOOKUP_ELEM);
    let unknown = code.jump(JUMP_EQUAL, R0, 0);
    // Packets, bytes; what either end has sent of FIN.
    code.load(DOUBLE, R1, R0, 8).add(R1, 1).store(DOUBLE, R0, 8, R1);
    code.load(WORD, R2, CONTEXT, 0)
        .load(DOUBLE, R1, R0, 16)
        .put(0x0f, R1, R2, 0, 0)
        .store(DOUBLE, R0, 16, R1);
    code.copy(R1, FLAGS).and(R1, 1);
    let goes_on = code.jump(JUMP_EQUAL, R1, 0);
    code.shift_left(R1, i32::from(low)).load(WORD, R2, R0, 0).put(0x4f, R2, R1, 0, 0).store(WORD, R0, 0, R2);
    let half = code.jump(JUMP_NOT, R2, 3);
    code.wide(R1, PSEUDO_MAP_FD, map.as_fd().as_raw_fd(), 0);
    code.copy(R2, STACK).add(R2, -40).call(MAP_DELETE_ELEM);
    let closed = code.jump(GOTO, 0, 0);
    code.land(unknown).copy(R1, FLAGS);
    let begins = code.jump(JUMP_SET, R1, 2);
    let stray = code.jump(GOTO, 0, 0);
    code.land(begins).set(R1, 0);
    for word in 0..13 {
        code.store(DOUBLE, STACK, VALUE + 8 * word, R1);
    }
    code.wide(R1, PSEUDO_MAP_FD, map.as_fd().as_raw_fd(), 0).copy(R2, STACK).add(R2, -40);
    code.copy(R3, STACK).add(R3, i32::from(VALUE)).set(R4, 1).call(MAP_UPDATE_ELEM);
    code.land(goes_on).land(half).land(closed).land(stray);
    // A hop less (RFC 1141).
    code.load(HALF, R1, DATA, 24).add(R1, 1).copy(R2, R1).shift_right(R2, 16).put(0x0f, R1, R2, 0, 0);
    code.store(HALF, DATA, 24, R1).load(BYTE, R1, DATA, 22).add(R1, -1).store(BYTE, DATA, 22, R1);
    for (n, word) in macs.into_iter().enumerate() {
        code.put(0xb4, R1, 0, 0, word as i32).store(WORD, DATA, 4 * n as i16, R1);
    }
    code.set(R1, to as i32).set(R2, 0).call(REDIRECT_PEER).end()
}

/// Does nothing.
pub fn empty() -> Vec<u64> {
    Code::default().set(R0, -1).end()
}

/// Makes the next packet and jumps to the program under test; adds `step` to the number in `generation` before.
pub fn driver(layout: &Layout, vary: &Vary, table: &OwnedFd, generation: &impl AsFd, step: i32) -> Vec<u64> {
    let state = layout.len - 4;
    let code = &mut Code::default();
    code.packet(layout.len).load(WORD, R0, DATA, state);
    // 32 bits of a linear congruential generator, times the number of packets, the upper half.
    code.put(0x24, R0, 0, 0, 1_664_525).put(0x04, R0, 0, 0, 1_013_904_223).store(WORD, DATA, state, R0);
    code.put(0x27, R0, 0, 0, vary.packets as i32).shift_right(R0, 32);
    code.copy(R3, R0).and(R3, (1 << vary.ports_bits) - 1).shift_left(R3, vary.port_shift);
    code.add(R3, i32::from(vary.first_port));
    code.big_endian(R3, 16).store(HALF, DATA, vary.port, R3);
    code.shift_right(R0, vary.ports_bits as i32).add(R0, vary.first_address as i32);
    code.big_endian(R0, 32).store(WORD, DATA, vary.address, R0);
    code.wide(R1, PSEUDO_MAP_VALUE, generation.as_fd().as_raw_fd(), 0);
    code.load(WORD, R2, R1, 0).add(R2, step).store(WORD, R1, 0, R2);
    code.copy(R1, CONTEXT).wide(R2, PSEUDO_MAP_FD, table.as_raw_fd(), 0).set(R3, 0);
    code.call(TAIL_CALL).set(R0, -101).end()
}

/// The look-up of a connection alone; 1: found.
pub fn bare_connection(layout: &Layout, sends: bool, proto: u8, map: &impl AsFd) -> Vec<u64> {
    let code = &mut Code::default();
    code.packet(layout.len).connection(layout, sends, proto).look_up(map, -40).set(R0, 1).end()
}

/// The look-up of the other end's address alone.
pub fn bare_address(layout: &Layout, sends: bool, map: &impl AsFd) -> Vec<u64> {
    let other = if sends { layout.dst } else { layout.src };
    let code = &mut Code::default();
    code.packet(layout.len).address(layout, other, -24).look_up(map, -24).set(R0, 1).end()
}

/// The look-up in an array alone: of one of `count` elements that lie `apart`, chosen by the packet's chance.
pub fn bare_element(layout: &Layout, map: &impl AsFd, count: u32, apart: u32) -> Vec<u64> {
    let code = &mut Code::default();
    code.packet(layout.len).load(WORD, R0, DATA, layout.len - 4);
    code.put(0x27, R0, 0, 0, count as i32).shift_right(R0, 32).put(0x27, R0, 0, 0, apart as i32);
    code.store(WORD, STACK, -4, R0).look_up(map, -4).load(DOUBLE, R1, R0, 0).set(R0, 1).end()
}

/// The look-up of a connection, and that of the other end's address.
pub fn bare_request(
    layout: &Layout,
    sends: bool,
    proto: u8,
    connections: &impl AsFd,
    addresses: &impl AsFd,
) -> Vec<u64> {
    let code = &mut Code::default();
    code.packet(layout.len).connection(layout, sends, proto).look_up(connections, -40);
    // Of the two addresses in the key the other's is the higher.
    code.look_up(addresses, -24).set(R0, 1).end()
}
