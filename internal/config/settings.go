package config

import "time"

// The tags of a settings struct are the whole description of its keys:
//
//	key      name in the file; a struct with a key is a nested object
//	unit     s or ms: the file holds a whole number of them
//	min      smallest number, or shortest list; max likewise
//	is       what a text must be: see textKinds, or a|b|c for a choice
//	only     the one value accepted, with refused as the explanation
//	cluster  yes: every role reads it, not only the one whose file it is in

// MARS is mars/main.json: the registry every node reports to.
type MARS struct {
	Address string `key:"address" is:"host"`                                // bind address of the mesh listener of this role
	Port    int    `key:"port" is:"port" min:"1" max:"65535" cluster:"yes"` // never searched: everyone has to know it
	// FullSyncRoles are the roles that get every node value in full.
	FullSyncRoles []string `key:"fullSyncRoles" is:"role" cluster:"yes"` // whichever node keeps the registry must know
	// EnableMetricsLogging writes the metrics as JSON to stdout each second.
	EnableMetricsLogging bool `key:"enableMetricsLogging"`
	// Recovery is auto, or manual when only an operator may found the cluster anew.
	Recovery string `key:"recovery" is:"auto|manual" cluster:"yes"`
}

// HTTP is http/main.json.
type HTTP struct {
	Address          string        `key:"address" is:"host"`
	Port             int           `key:"port" is:"port" min:"0" max:"65535"`
	UseFixedPort     bool          `key:"useFixedPort"` // false: the first free port from Port upward
	Timeout          time.Duration `key:"timeout" unit:"s" min:"1" max:"300"`
	EnableEncryption bool          `key:"enableEncryption" only:"true" refused:"credentials are always issued: the client protocol has no unencrypted form"`
	AllowOrigin      string        `key:"allowOrigin" is:"origin"` // CORS; empty sends no header
	ExposeDebugAPI   bool          `key:"exposeDebugAPI"`
	ExposeMetrics    bool          `key:"exposeMetrics"` // the cluster's figures on the public port too

	// Who may ask for places. See the package httpapi/ticket.
	Auth           string `key:"auth" is:"none|ticket"`
	TicketKeys     string `key:"ticketKeys"` // a JWKS file of public keys
	TicketAudience string `key:"ticketAudience"`

	// What one address may do: an IPv4 address or an IPv6 /64. A rate of 0 is unlimited.
	RequestsPerAddress      int      `key:"requestsPerAddress" min:"0" max:"1000000"` // places asked for per second
	RequestsPerAddressBurst int      `key:"requestsPerAddressBurst" min:"1" max:"1000000"`
	ConnectionsPerAddress   int      `key:"connectionsPerAddress" min:"0" max:"1000000"` // 0: unlimited
	MaxConnections          int      `key:"maxConnections" min:"16" max:"1000000"`
	ExemptAddresses         []string `key:"exemptAddresses" is:"prefix" max:"1024"` // that the limits don't count
	TrustedProxies          []string `key:"trustedProxies" is:"prefix" max:"1024"`  // whose X-Forwarded-For is believed
}

// Public is what players are told of a udp or tcp node, where that is not what the node
// binds: behind NAT, a container's port mapping or a DNS name.
type Public struct {
	PublicAddress string `key:"publicAddress" is:"public"`                // host name or IP; over DIARKIS_CLOUD_ENV
	PublicPort    int    `key:"publicPort" is:"port" min:"0" max:"65535"` // 0: the port that was bound
}

// Limits are what clients may do to a udp or tcp node. A rate of 0 is unlimited.
type Limits struct {
	MaxUsers       int           `key:"maxUsers" min:"1" max:"10000000"` // places reserved or connected
	ReservationTTL time.Duration `key:"reservationTTL" unit:"s" min:"5" max:"3600"`

	// Of places that were reserved and nobody opened yet: past a limit the oldest of them goes.
	ReservationsPerUser int           `key:"reservationsPerUser" min:"1" max:"1000"`
	ReservationsMax     int           `key:"reservationsMax" min:"0" max:"10000000"`         // 0: a tenth of MaxUsers, at least 64
	ReservationTTLMin   time.Duration `key:"reservationTTLMin" unit:"s" min:"5" max:"3600"`  // the TTL of the last that fits ReservationsMax
	ReservedBytesMax    int           `key:"reservedBytesMax" min:"65536" max:"17179869184"` // of their initial properties, as encoded
	// ArrivalsMax is how many users may be on their way here from other nodes at once; 0:
	// a tenth of MaxUsers, at least 64.
	ArrivalsMax int `key:"arrivalsMax" min:"0" max:"10000000"`

	// Before the handshake, per second and in one burst.
	HelloPerUser           int `key:"helloPerUser" min:"0" max:"1000000"`
	HelloPerUserBurst      int `key:"helloPerUserBurst" min:"1" max:"1000000"`
	HelloPerAddress        int `key:"helloPerAddress" min:"0" max:"1000000"` // one IPv4 address or IPv6 /64
	HelloPerAddressBurst   int `key:"helloPerAddressBurst" min:"1" max:"1000000"`
	UnauthenticatedPackets int `key:"unauthenticatedPackets" min:"0" max:"10000000"` // of the whole process

	// Of one connection, after the handshake. Told to clients in 16 bits of packets and KiB.
	PacketsPerSecond int `key:"packetsPerSecond" min:"0" max:"65535"`
	PacketsBurst     int `key:"packetsBurst" min:"1" max:"1000000"`
	BytesPerSecond   int `key:"bytesPerSecond" min:"0" max:"67107840"`
	BytesBurst       int `key:"bytesBurst" min:"2048" max:"1073741824"`

	// Of one user, whatever the connection: commands, and what built-in ones make others
	// receive, in datagrams: messages times receivers, for every started 1,100 bytes.
	CommandsPerSecond   int `key:"commandsPerSecond" min:"0" max:"1000000"`
	CommandsBurst       int `key:"commandsBurst" min:"1" max:"1000000"`
	DeliveriesPerSecond int `key:"deliveriesPerSecond" min:"0" max:"1000000000"`
	DeliveriesBurst     int `key:"deliveriesBurst" min:"1" max:"1000000000"`

	// Waiting to be sent to one client: messages are unreliable ones.
	SendQueueMessages int `key:"sendQueueMessages" min:"1" max:"1000000"`
	SendQueueBytes    int `key:"sendQueueBytes" min:"2048" max:"1073741824"`
	SendQueueBytesMax int `key:"sendQueueBytesMax" min:"65536" max:"4194304"`

	// Kept for all clients together: incomplete messages, and what came beyond a hole.
	HeldBytesMax int `key:"heldBytesMax" min:"16777216" max:"1099511627776"`
}

// UDP is udp/main.json.
type UDP struct {
	Public
	Address            string        `key:"address" is:"host"`
	Port               int           `key:"port" is:"port" min:"0" max:"65535"`
	NIC                string        `key:"nic"`                               // interface whose address is bound when Address is empty
	Sockets            int           `key:"sockets" min:"0" max:"64"`          // that share the port, each with a reader; 0: one for every two processors
	MaxDatagram        int           `key:"maxDatagram" min:"1200" max:"1452"` // largest datagram that is accepted
	EnableP2P          bool          `key:"enableP2P"`
	ConnectionTTL      time.Duration `key:"connectionTTL" unit:"s" min:"1" max:"3600"`         // silence that ends a connection
	SendUDPInterval    time.Duration `key:"sendUDPInterval" unit:"ms" min:"0" max:"1000"`      // 0, or at least 10: collect output that long
	HandleRUDPInterval time.Duration `key:"handleRUDPInterval" unit:"ms" min:"10" max:"10000"` // upper bound of the timer
	RetryInterval      time.Duration `key:"retryInterval" unit:"ms" min:"50" max:"60000"`      // cap of the probe timeout
	MaxRetry           int           `key:"maxRetry" min:"1" max:"100"`                        // probe timeouts in a row that end a connection
	ResumeTTL          time.Duration `key:"resumeTTL" unit:"s" min:"1" max:"3600"`
	RekeyPackets       int           `key:"rekeyPackets" min:"1024" max:"1073741824"`
	EnableEncryption   bool          `key:"enableEncryption" only:"true" refused:"the client protocol has no unencrypted form"`
	Limits
}

// TCP is tcp/main.json.
type TCP struct {
	Public
	Address          string        `key:"address" is:"host"`
	Port             int           `key:"port" is:"port" min:"0" max:"65535"`
	NIC              string        `key:"nic"`
	ConnectionTTL    time.Duration `key:"connectionTTL" unit:"s" min:"1" max:"3600"`
	MaxRcvSize       int           `key:"maxRcvSize" min:"1220" max:"65535"` // longest record, length prefix included
	NoDelay          bool          `key:"noDelay"`
	ResumeTTL        time.Duration `key:"resumeTTL" unit:"s" min:"1" max:"3600"`
	RekeyPackets     int           `key:"rekeyPackets" min:"1024" max:"1073741824"`
	EnableEncryption bool          `key:"enableEncryption" only:"true" refused:"the client protocol has no unencrypted form"`
	// HandshakesPerAddress is how many connections of one IPv4 address or IPv6 /64 may
	// be in their handshake at once; 0 is unlimited.
	HandshakesPerAddress int `key:"handshakesPerAddress" min:"0" max:"1000000"`
	Limits
}

// Mesh is shared/mesh.json: how nodes reach each other.
type Mesh struct {
	NIC                  string        `key:"nic"`
	MARSAddress          string        `key:"marsAddress" is:"host"`
	MARSPort             int           `key:"marsPort" is:"port" min:"1" max:"65535"`
	MARSAddressCacheTTL  time.Duration `key:"marsAddressCacheTTL" unit:"s" min:"0" max:"86400"`
	Seeds                []string      `key:"seeds" is:"hostport" max:"64"` // host or host:port, asked when MARSAddress is silent
	RetryInterval        time.Duration `key:"retryInterval" unit:"ms" min:"10" max:"60000"`
	ReliableRetryTimeout time.Duration `key:"reliableRetryTimeout" unit:"ms" min:"100" max:"600000"`
	Address              string        `key:"address" is:"host"`
	Port                 int           `key:"port" is:"port" min:"0" max:"65535"` // searched upward
	TLS                  TLS           `key:"tls"`
	AllowPublic          bool          `key:"allowPublic"`
}

// TLS names the certificate files of the mesh: all three, or none.
type TLS struct {
	Cert string `key:"cert"`
	Key  string `key:"key"`
	CA   string `key:"ca"`
}

// IsSet tells whether certificate files were named.
func (t TLS) IsSet() bool { return t != TLS{} }

// Metrics is shared/metrics.json: the admin listener of every role.
type Metrics struct {
	Address string `key:"address" is:"host"`
	Port    int    `key:"port" is:"port" min:"0" max:"65535"` // searched upward
}

// Log is shared/log.json.
type Log struct {
	Level string `key:"level" is:"trace|debug|info|warn|error|fatal"`
	Color string `key:"color" is:"auto|true|false"` // a JSON bool is accepted too
	JSON  bool   `key:"json"`
	Flat  bool   `key:"flat"` // key=value on one line, never coloured
}

// HealthCheck is shared/health-check.json: settings of the probe, not of a node.
type HealthCheck struct {
	Level   string `key:"level" is:"trace|debug|info|warn|error|fatal"`
	Address string `key:"address" is:"host"`                  // probed instead of what the node recorded
	Port    int    `key:"port" is:"port" min:"0" max:"65535"` // 0: as the node recorded
}

// Room is shared/room.json.
type Room struct {
	MaxMembers int           `key:"maxMembers" min:"2" max:"1000"`          // largest room that may be created
	MaxRooms   int           `key:"maxRooms" min:"1" max:"10000000"`        // on a node; then those go that nobody is in, the longest empty first
	MaxTTL     time.Duration `key:"maxTTL" unit:"s" min:"10" max:"65535"`   // of a room that a client made and nobody is in
	EmptyRooms int           `key:"emptyRoomsPerUser" min:"1" max:"100000"` // of one maker, on a node
	// CreatesPerSecond is how many rooms a user makes, or looks for on other nodes; 0 is unlimited.
	CreatesPerSecond int `key:"createsPerSecond" min:"0" max:"1000000"`
	CreatesBurst     int `key:"createsBurst" min:"1" max:"1000000"`
}
