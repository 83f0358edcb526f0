package mesh

import "time"

// watchIdentity reads the files of the identity again and again, whether or not anybody
// connects, and says what came of a change in one line.
func (m *Mesh) watchIdentity() {
	ticker := time.NewTicker(m.cfg.identityEvery)
	defer ticker.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-ticker.C:
			m.refreshIdentity()
		}
	}
}

// refreshIdentity takes over a changed identity and verifies every peer again: one that
// proved itself by a secret or an authority that is gone is not of this cluster any more.
func (m *Mesh) refreshIdentity() {
	changed, err := m.identity.refresh()
	if err != nil {
		m.log.Error().Err(err).Str("source", m.identity.source).Msg("mesh identity change refused, old one kept")
	}
	if !changed {
		return
	}
	expelled := 0
	for _, c := range m.connections() {
		if m.identity.verifyChain(c.chain) != nil {
			expelled++
			c.expel()
		}
	}
	m.metrics.expelled.Add(float64(expelled))
	m.log.Info().Str("source", m.identity.source).Int("links_ended", expelled).Msg("mesh identity reloaded")
}
