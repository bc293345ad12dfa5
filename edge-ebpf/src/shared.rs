//! Values in maps and in the storage of sockets, which other processors and user space write at the same time.
//!
//! A reference to such a value would be wrong: `&T` promises that it does not change, `&mut T` that nobody else
//! accesses it. So [`Shared`] holds a raw pointer, and a field is read and written through [`read!`](crate::read) and
//! [`write!`](crate::write) alone, each time with one volatile access of the field's own width, like the kernel's
//! `READ_ONCE` and `WRITE_ONCE`. The compiler may not tear, merge, repeat or omit it, and the processor does not tear
//! an aligned word. Nothing is ordered: a program that reads two fields must accept values of different moments.
//!
//! These are not atomics, because Rust has none for this target that are narrower than 64 bits or add
//! (`min-atomic-width` and `atomic-cas` of `bpfel-unknown-none`). Where two processors may write a field, one of two
//! rules holds:
//!
//! - Each writes a whole value that does not depend on the old one. So every flag is a byte of its own.
//! - A lost update is harmless: a later one corrects it, or the number is a statistic. The writer says so.

use core::ptr::NonNull;

/// A value that others may write at any time. Copies denote the same value.
///
/// It stays a `T` until the program ends, though perhaps not the one that was looked up: an element that is deleted
/// meanwhile returns to its map's allocator (`kernel/bpf/memalloc.c`, since Linux 6.1; the free list of a preallocated
/// or LRU map) and can become another entry of the same map at once. The memory leaves the map only after an RCU
/// grace period, and a program runs within one read-side section. The storage of a socket is freed after a grace
/// period as well, and is not reused before. Elements of arrays are never freed.
#[repr(transparent)]
pub struct Shared<T>(NonNull<T>);

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// The value that a lookup returned; `None` if that is null.
    ///
    /// # Safety
    ///
    /// `found` is null, or comes from a lookup in the same run of the program, in a map whose values are `T`. `T` is
    /// `repr(C)` and consists of integers, so that every bit pattern is a value.
    #[inline(always)]
    pub unsafe fn new(found: *mut T) -> Option<Self> {
        NonNull::new(found).map(Self)
    }

    /// The address of the value. Only for the macros of this module.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut T {
        self.0.as_ptr()
    }
}

/// An integer that the processor reads and writes in one access.
///
/// # Safety
///
/// Every bit pattern is a value, and an aligned one is read and written in one access.
pub unsafe trait Word: Copy {}

// SAFETY: an integer no wider than a register.
unsafe impl Word for u8 {}
// SAFETY: as above.
unsafe impl Word for u32 {}
// SAFETY: as above.
unsafe impl Word for u64 {}

impl<T: Word> Shared<T> {
    /// Reads a value that is one integer.
    #[inline(always)]
    pub fn load(self) -> T {
        // SAFETY: mapped until the program ends, aligned, and any bits are an integer (see `Shared`).
        unsafe { self.as_ptr().read_volatile() }
    }
}

/// Reads a field of a [`Shared`] value once. For [`read!`](crate::read) alone.
///
/// # Safety
///
/// `field` points to a field of a [`Shared`] value of this run of the program.
#[inline(always)]
pub unsafe fn read_field<W: Word>(field: *const W) -> W {
    // SAFETY: mapped until the program ends, aligned by its representation, and any bits are an integer.
    unsafe { field.read_volatile() }
}

/// Writes a field of a [`Shared`] value once. For [`write!`](crate::write) alone.
///
/// # Safety
///
/// `field` points to a field of a [`Shared`] value of this run of the program.
#[inline(always)]
pub unsafe fn write_field<W: Word>(field: *mut W, number: W) {
    // SAFETY: as for reading; the maps may be written.
    unsafe { field.write_volatile(number) }
}

/// Reads a field of a [`Shared`] value: `read!(value, field)`.
#[macro_export]
macro_rules! read {
    ($shared:expr, $($field:tt)+) => {{
        let value = $crate::shared::Shared::as_ptr($shared);
        // SAFETY: a field of a shared value.
        unsafe { $crate::shared::read_field(&raw const (*value).$($field)+) }
    }};
}

/// Writes a field of a [`Shared`] value: `write!(value, field = number)`.
#[macro_export]
macro_rules! write {
    ($shared:expr, $field:ident $([$index:expr])? = $number:expr) => {{
        let (value, number) = ($crate::shared::Shared::as_ptr($shared), $number);
        // SAFETY: a field of a shared value.
        unsafe { $crate::shared::write_field(&raw mut (*value).$field $([$index])?, number) }
    }};
}
