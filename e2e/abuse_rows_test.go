//go:build unix

package e2e

import "time"

// roomOf8 has a seat for an attacker.
var roomOf8 = crewOptions{players: 7, room: 7, seats: 8}

// abuseRows is the suite. A row's honest players are eight in rooms of four, unless it
// says otherwise, each saying ten things a second; and ten new players a second enter.
//
// On loopback the limits by address are lifted where they have their default, so rows
// about them set another value, as near to it as can be.
var abuseRows = []row{
	// A limit must not punish the victim.
	{name: "broadcasts", crew: roomOf8, attack: floodRoom(smallBroadcasts)},
	{name: "broadcasts, tcp", role: "tcp", crew: roomOf8, attack: floodRoom(smallBroadcasts), fullOnly: true},
	{name: "broadcasts, merged", crew: crewOptions{players: 7, room: 7, seats: 8, merge: 100 * time.Millisecond}, attack: floodRoom(smallBroadcasts), fullOnly: true},
	{name: "messages to members", crew: roomOf8, attack: floodRoom(messagesToAll), fullOnly: true},
	{name: "comings and goings", crew: roomOf8, attack: floodRoom(comingsAndGoings), fullOnly: true},
	{name: "bursts after resumes", crew: crewOptions{players: 7, room: 7, seats: 9}, attack: burstAfterBurst(true)},
	{name: "bursts after logins", crew: crewOptions{players: 7, room: 7, seats: 9}, attack: burstAfterBurst(false), fullOnly: true},
	{name: "60 a second into 100", crew: crewOptions{players: 100, room: 100, rate: 60, speakers: 1}, attack: talkALot(3, 15)},
	{name: "20 a second into 1000", crew: crewOptions{players: 1000, room: 1000, rate: 20, speakers: 1, ramp: 32}, attack: talkALot(0, 10), fullOnly: true},
	{name: "forged hellos", env: []string{"DIARKIS_UDP_HELLO_PER_ADDRESS=21"}, attack: forgeHellos},
	{name: "bad bodies", attack: postBadBodies},

	// A bound in total has to belong to somebody.
	{name: "rooms nobody joins", attack: hoardRooms},
	{name: "empty random rooms", attack: litterRooms},
	{name: "places of many", nodes: 2, shortEnv: []string{"DIARKIS_UDP_MAX_USERS=2500"}, attack: takePlaces},
	{name: "places of one", nodes: 2, env: []string{"DIARKIS_UDP_MAX_USERS=50"}, attack: takePlacesOfTwo},
	{name: "heavy bodies", attack: postHeavyBodies},
	{name: "bulky bodies", env: []string{"DIARKIS_UDP_RESERVED_BYTES_MAX=8388608", "DIARKIS_UDP_RESERVATION_TTL=10"}, attack: postBulkyBodies},
	{name: "sids of one", attack: replaceMany, stallMax: 250 * time.Millisecond},
	{name: "half messages", attack: halfMessages},
	{name: "resumes with a hole", attack: resumeWithHole},
	{name: "silent tcp", role: "tcp", env: []string{"DIARKIS_TCP_HANDSHAKES_PER_ADDRESS=65"}, attack: silentTCPOfMany},

	// A passing shortage is not the end.
	{name: "tcp descriptors", role: "tcp", fds: map[string]int{"tcp": 100}, attack: exhaustTCP, shortage: true},
	{name: "slow headers", fds: map[string]int{"http": 256}, env: []string{"DIARKIS_HTTP_MAX_CONNECTIONS=128"}, attack: slowHeaders},
	{name: "commands", attack: floodCommands, fullOnly: true},
}
