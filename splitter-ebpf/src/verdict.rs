//! What the pipeline says about a packet. One scalar, because a BPF subprogram returns one register.

/// A decision; the entry points turn it into their hook's action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(u64);

/// [`Verdict`], taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the next program, then the stack.
    Pass,
    Drop,
    /// Out of an interface; link header written.
    Redirect(u32),
    /// Into the other end of a veth; link header written.
    RedirectPeer(u32),
    /// Out of an interface, after the stack has resolved the neighbour.
    Neighbour(u32),
    /// Back to the sender, by the interface where it was seen; link header turned round.
    Return(u32),
    /// In by an interface, to the stack; link header leads there.
    Inwards(u32),
    /// Not decided yet: go on. Between functions only.
    Continue,
    /// The flow was forgotten, or there was none: treat the packet as a first one. Between functions only.
    Again,
    /// As `Again`, but not to this backend. Between functions only.
    AgainAvoiding(u32),
    /// Answer with a TCP reset. Between functions only.
    Reset,
    /// Go on as a TCP reset of the receiver. Between functions only.
    ResetReceiver,
    /// Answer by an ICMP error: that only packets up to this size fit, or one of [`mod@crate::answer::error`]. Between functions only.
    Error(u32),
    /// On to the splice: a client's packet, a backend's. Between programs only.
    SpliceClient,
    SpliceServer,
    /// On to what else a client's packet, or a backend's, may need. Between programs only.
    SpliceConnection,
    SpliceLeg,
    /// On to the program that writes packets. Between programs only.
    Step,
    /// On to the program that reads heads. Between programs only.
    Read,
    /// On to the program that follows request bodies. Between programs only.
    Body,
    /// As `Step`: the flow is over.
    Over(u32),
    /// On to the program for what is no data of a flow. Between programs only.
    Aside,
}

/// Tells `inwards` from `back`: interface numbers are positive integers of C.
const INWARDS: u32 = 1 << 31;

impl Verdict {
    pub const PASS: Self = Self(0);
    pub const DROP: Self = Self(1 << 32);
    pub const CONTINUE: Self = Self(5 << 32);
    /// The highest but `ASIDE`, so that one comparison tells it.
    pub const AGAIN: Self = Self(30 << 32);
    /// As `AGAIN`: the packet's table has no entry.
    pub const MISSED: Self = Self(30 << 32 | 1);
    /// What is no data of a flow: see `lb::aside`. `again` is true of it, so that the common path has no comparison more.
    pub const ASIDE: Self = Self(31 << 32);
    pub const RESET: Self = Self(8 << 32);
    pub const RESET_RECEIVER: Self = Self(11 << 32);
    pub const SPLICE_CLIENT: Self = Self(12 << 32);
    pub const SPLICE_SERVER: Self = Self(13 << 32);
    /// What is left to do with a spliced flow's packet: see `splice::steps`.
    pub const CONNECT: Self = Self(14 << 32);
    pub const DELIVER: Self = Self(15 << 32);
    pub const TO_CLIENT: Self = Self(16 << 32);
    pub const SEND: Self = Self(17 << 32);
    /// As `SEND`, behind copies of the packet that have gone before it: see `splice::way::behind`.
    pub const SEND_BEHIND: Self = Self(17 << 32 | 1);
    pub const ANSWER: Self = Self(18 << 32);
    pub const STALE: Self = Self(19 << 32);
    /// Translated, and nothing else.
    pub const PLAIN: Self = Self(21 << 32);
    /// As `PLAIN`, and the leg that was in use before hears of what its client has received: see `splice::parked`.
    pub const SWITCHED: Self = Self(21 << 32 | 1);
    /// A request that its backend has left unacknowledged goes to another one: see `splice::again`.
    pub const UNHEARD: Self = Self(14 << 32 | 1);
    /// The backend in use has closed its connection before it has read the request.
    pub const UNREAD: Self = Self(14 << 32 | 2);
    /// A head is to be read: see `splice::read`.
    pub const READ: Self = Self(22 << 32);
    /// As `CONNECT`: an ICMP error has come in answer to a leg's SYN.
    pub const UNREACHABLE: Self = Self(25 << 32);
    /// The backend in use is down, and its packet in hand has come first: both ends are reset.
    pub const CUT: Self = Self(27 << 32);

    /// The client's data goes on behind what is known of its request: see `splice::body`.
    pub const BODY: Self = Self(26 << 32);

    /// A client's packet that is not plain: see `splice::connection`.
    pub const CONNECTION: Self = Self(23 << 32);
    /// A backend's packet that is not plain: see `splice::leg`.
    pub const LEG: Self = Self(24 << 32);

    /// Whether it is `AGAIN`, `MISSED` or `ASIDE`.
    #[inline(always)]
    pub const fn again(self) -> bool {
        self.0 >= Self::AGAIN.0
    }
    /// The packet goes out of an interface, and the idle legs of its flow are reset.
    #[inline(always)]
    pub const fn over(ifindex: u32) -> Self {
        Self(20 << 32 | ifindex as u64)
    }
    #[inline(always)]
    pub const fn redirect(ifindex: u32) -> Self {
        Self(2 << 32 | ifindex as u64)
    }
    #[inline(always)]
    pub const fn redirect_peer(ifindex: u32) -> Self {
        Self(3 << 32 | ifindex as u64)
    }
    #[inline(always)]
    pub const fn neighbour(ifindex: u32) -> Self {
        Self(4 << 32 | ifindex as u64)
    }
    #[inline(always)]
    pub const fn again_avoiding(backend: u32) -> Self {
        Self(7 << 32 | backend as u64)
    }
    #[inline(always)]
    pub const fn error(what: u32) -> Self {
        Self(9 << 32 | what as u64)
    }
    #[inline(always)]
    pub const fn back(ifindex: u32) -> Self {
        Self(10 << 32 | ifindex as u64)
    }
    /// In by an interface, whichever hook says so. A kind of `back`, so that the common path has no comparison more.
    #[inline(always)]
    pub const fn inwards(ifindex: u32) -> Self {
        Self::back(ifindex | INWARDS)
    }
    #[inline(always)]
    pub const fn action(self) -> Action {
        let detail = self.0 as u32;
        match self.0 >> 32 {
            1 => Action::Drop,
            2 => Action::Redirect(detail),
            3 => Action::RedirectPeer(detail),
            4 => Action::Neighbour(detail),
            5 => Action::Continue,
            7 => Action::AgainAvoiding(detail),
            8 => Action::Reset,
            9 => Action::Error(detail),
            10 if detail & INWARDS != 0 => Action::Inwards(detail & !INWARDS),
            10 => Action::Return(detail),
            11 => Action::ResetReceiver,
            12 => Action::SpliceClient,
            13 => Action::SpliceServer,
            14..20 | 21 | 25 | 27 => Action::Step,
            20 => Action::Over(detail),
            22 => Action::Read,
            23 => Action::SpliceConnection,
            24 => Action::SpliceLeg,
            26 => Action::Body,
            30 => Action::Again,
            31 => Action::Aside,
            _ => Action::Pass,
        }
    }
}
